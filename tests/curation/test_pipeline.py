"""A curation from files to files: counts, stages, what is refused, what training reads."""

import csv
import fcntl
import json
import random

import pyarrow.parquet as pq
import pytest

import s1jax
from s1jax.curation import choice, presets
from s1jax.data import identity, s1k
from s1jax.errors import UserError
from s1jax.text.tokenizer import Tokenizer


def row(i, **more):
    """A row of a pool, in s1K's form."""
    rng = random.Random(i)
    return {
        "question": f"What is {i} plus {i * 7}?",
        "thinking_trajectories": ["think " * rng.randrange(1, 30)],
        "attempt": f"Answer: {8 * i}",
        "solution": str(8 * i),
        "domain": f"domain {rng.randrange(5)}",
        "pass_rate": rng.choice([0.0, 0.25, 0.75, 1.0]),
        "correct": rng.random() < 0.6,
        "trace_tokens": rng.randrange(100, 9000),
        "source_type": rng.choice(["simplescaling/openaimath/Algebra", "AI-MO/NuminaMath-CoT/aops", "Idavidrein/gpqa"]),
    } | more


def curate(rows, out, against=("none",), **settings):
    """The public function, by default without evaluation sets."""
    return s1jax.curate(rows, out, against=against, **settings)


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def chosen(out):
    return [json.loads(line)["id"] for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def rows():
    return [row(i) for i in range(300)]


@pytest.mark.parametrize("preset", ["ours", "questions", "s1_paper", "s1_code"])
def test_kept_and_dropped_are_the_input_in_any_order(tmp_path, rows, preset):
    one = curate([write(tmp_path / "a.jsonl", rows)], tmp_path / "one", preset=preset, size=60)
    shuffled = random.Random(1).sample(rows, len(rows))
    files = [write(tmp_path / f"b{i}.jsonl", shuffled[i::3]) for i in range(3)]
    curate(files, tmp_path / "other", preset=preset, size=60)
    ids = chosen(tmp_path / "one")
    assert len(ids) == 60 and ids == chosen(tmp_path / "other")
    dropped = pq.read_table(tmp_path / "one" / "dropped.parquet").to_pylist()
    assert sorted([*ids, *(one["id"] for one in dropped)]) == sorted(identity.question_id(r["question"]) for r in rows)
    assert all(one["rule"] and one["reason"] and one["evidence"] for one in dropped)
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert [stage["rule"] for stage in report["funnel"]] == [stage.name for stage in one.stages]
    assert all(stage["given"] == stage["dropped"] + stage["kept"] for stage in report["funnel"])
    solved = sum(r["pass_rate"] > (0 if preset.startswith("s1") else 0.99) for r in rows)
    assert next(stage.dropped for stage in one.stages if stage.name == "difficulty") == solved
    curate(files, tmp_path / "third", preset=preset, size=60, seed=1)
    assert set(chosen(tmp_path / "third")) != set(ids)


def test_training_reads_what_was_chosen(tmp_path, rows):
    curate([write(tmp_path / "a.jsonl", rows)], tmp_path / "out", size=50)
    read = s1k.load_rows(str(tmp_path / "out" / "rows.jsonl"))
    by_question = {one["question"]: one for one in rows}
    assert len(read) == 50
    for one in read:
        assert one.trace == by_question[one.question]["thinking_trajectories"][0]
        assert one.answer == by_question[one.question]["attempt"]
    assert any(not json.loads(line)["answer_is_right"] for line in (tmp_path / "out" / "rows.jsonl").open())


def test_a_changed_setting_does_only_what_follows_again(tmp_path, rows):
    source, out = [write(tmp_path / "a.jsonl", rows)], tmp_path / "out"
    times = lambda: {file.name: file.stat().st_mtime_ns for file in (out / "stages").glob("*.parquet")}  # noqa: E731
    curate(source, out, size=50)
    first, ids = times(), chosen(out)
    curate(source, out, size=50)
    assert times() == first and chosen(out) == ids
    curate(source, out, size=50, seed=3)
    changed = {name for name, time in times().items() if time != first[name]}
    assert {name[3:] for name in changed} == {"selection.parquet"} and chosen(out) != ids
    write(tmp_path / "a.jsonl", [*rows, row(1000)])
    curate(source, out, size=50)
    assert all(time != first[name] for name, time in times().items())


def test_a_damaged_stage_is_made_again(tmp_path, rows):
    source, out = [write(tmp_path / "a.jsonl", rows)], tmp_path / "out"
    curate(source, out, size=50)
    ids = chosen(out)
    for file in (out / "stages").glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-20])
    curate(source, out, size=50)
    assert chosen(out) == ids
    pool = out / "stages" / "00-rows.parquet"
    whole = pool.read_bytes()
    pool.write_bytes(whole[:20] + bytes(len(whole) // 3) + whole[20 + len(whole) // 3 :])
    with pytest.raises(UserError, match=r"00-rows.parquet is damaged .*; remove it and run the same command again"):
        curate(source, out, size=60)
    pool.unlink()
    killed = [out / f".rows.jsonl.{'0' * 16}.part", out / "stages" / f".00-rows.parquet.{'1' * 16}.part"]
    for part in killed:
        part.write_bytes(b"half")
    curate(source, out, size=50)
    assert chosen(out) == ids and not any(part.exists() for part in killed)


def test_answers_and_copies_have_ids_of_their_own(tmp_path):
    """The shortest right answer is kept, whatever the order; a copy is dropped with the name of the other row."""
    texts = [("long " * 9, True), ("short", False), ("middle " * 3, True), ("middle " * 3, True)]
    answers = [row(1, thinking_trajectories=[t], correct=right, pass_rate=0.5) for t, right in texts]
    for one in answers:
        del one["trace_tokens"]
    for order in (answers, answers[::-1]):
        out = tmp_path / f"out{order is answers}"
        report = curate([write(tmp_path / "a.jsonl", order)], out, size=0)
        (kept,) = map(json.loads, (out / "rows.jsonl").open())
        assert kept["thinking_trajectories"] == ["middle " * 3]
        assert kept["id"].startswith(identity.question_id(answers[0]["question"]) + "#")
        assert {stage.name: stage.dropped for stage in report.stages if stage.dropped} == {"identity": 1, "answers": 2}
    own = identity.question_id(answers[0]["question"])
    given = [{**one, "id": f"{own}#{k}"} for k, one in zip((5, 2, 4), answers, strict=False)]
    curate([write(tmp_path / "b.jsonl", given)], tmp_path / "given", size=0)
    assert chosen(tmp_path / "given") == [f"{own}#4"]


@pytest.mark.parametrize(
    ("change", "preset", "sentence"),
    [
        ({"pass_rate": None}, "ours", "no column pass_rate, which the rule difficulty"),
        ({"source_type": None}, "s1_paper", "no column source_type, which the rule selection"),
        ({"pass_rate": 1.0}, "questions", "difficulty dropped all 300 rows .* right each time"),
        ({"thinking_trajectories": None, "attempt": None}, "ours", "no row .* has a trace.*--preset=questions"),
        ({"question": None}, "ours", r"a.jsonl:1"),
        ({"pass_rate": 1.5}, "ours", r"a.jsonl:1: pass_rate is 1.5; it must be a number from 0 to 1"),
        ({"pass_rate": "high"}, "questions", r"a.jsonl:1: pass_rate is 'high'"),
        ({"pass_rate": True}, "ours", r"a.jsonl:1: pass_rate is True"),
        ({"pass_tries": 0}, "ours", r"a.jsonl:1: pass_tries is 0; it must be a whole number from 1 on"),
        ({"correct": "perhaps"}, "s1_paper", r"a.jsonl:1: correct is 'perhaps'; it must be true or false"),
        ({"correct": None, "is_correct": [True]}, "s1_paper", r"a.jsonl:1: is_correct is \[True\]"),
        ({"trace_tokens": -3}, "ours", r"a.jsonl:1: trace_tokens is -3"),
        ({"trace_tokens": [1]}, "s1_code", r"a.jsonl:1: trace_tokens is \[1\]"),
        ({"domain": {"a": 1}}, "ours", r"a.jsonl:1: domain is .*; it must be a text"),
        ({"_drop": "x"}, "ours", r"a.jsonl:1 has a column _drop, a name that curation keeps for itself"),
        ({"attempt": "\ud800"}, "ours", r"none of the 300 rows can be used; the first.*not valid Unicode"),
    ],
)
def test_what_a_user_can_correct_is_one_sentence(tmp_path, rows, change, preset, sentence):
    changed = [{k: v for k, v in {**one, **change}.items() if v is not None} for one in rows]
    with pytest.raises(UserError, match=sentence):
        curate([write(tmp_path / "a.jsonl", changed)], tmp_path / "out", preset=preset)
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_numbers_and_verdicts_of_a_csv_choose_the_same_rows(tmp_path, rows):
    rows = [{**one, "domain": one["domain"] if i % 7 else ""} for i, one in enumerate(rows)]  # "": missing, as in CSV
    rows = [{**one, "thinking_trajectories": one["thinking_trajectories"][0]} for one in rows]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for preset in ("ours", "s1_paper", "s1_code"):
        found = []
        for name in (write(tmp_path / "a.jsonl", rows), str(tmp_path / "a.csv")):
            curate([name], tmp_path / "out", preset=preset, size=50)
            found.append([json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()])
        assert len(found[0]) == 50 and found[0] == found[1]


def test_a_pool_is_not_written_over(tmp_path, rows):
    pool = write(tmp_path / "rows.jsonl", rows)
    for source in (pool, str(tmp_path)):
        with pytest.raises(UserError, match=r"would be read and .*rows.jsonl written over it, which loses rows"):
            curate([source], tmp_path, size=5)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 300


def test_rows_that_cannot_be_used_are_dropped_by_name(tmp_path):
    good = row(1, pass_rate=0.5)
    bad = [
        {**row(2), "images": ["x.png"]},
        {"question": "Explain what follows.", "context": "A long text.", "pass_rate": 0.5},
        {**row(3), "attempt": " "},
        {key: value for key, value in row(4).items() if key != "pass_rate"},
        {"problem": "Has no trace?", "pass_rate": 0.5},
    ]
    notes = []
    curate([write(tmp_path / "a.jsonl", [good, *bad])], tmp_path / "out", size=5, on_note=notes.append)
    assert chosen(tmp_path / "out") == [identity.question_id(good["question"])]
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert sorted(one["name"].rpartition(":")[2] for one in dropped) == ["2", "3", "4", "5", "6"]
    assert any("1 rows are left, fewer than --size=5" in note for note in notes)
    questions = curate([str(tmp_path / "a.jsonl")], tmp_path / "questions", preset="questions", size=5)
    assert questions.stages[-1].kept == 2
    lines = [json.loads(line) for line in (tmp_path / "questions" / "rows.jsonl").open()]
    assert all("thinking_trajectories" not in line for line in lines)


@pytest.fixture
def leaky(tmp_path, rows):
    """A pool with leaks that come in by every way, and an evaluation set."""
    words = "A train leaves the station at noon and travels east at a speed of sixty miles per hour for how long?"
    leaks = [
        row(1000, question=words, pass_rate=0.5),
        row(
            1001, question=f"{words} Show your work.", pass_rate=0.0, source_type="qq8933/AIME_1983_2024", correct=True
        ),
    ]
    write(
        tmp_path / "eval.jsonl",
        [{"problem": "How many primes are there below one hundred, not counting two?"}, {"problem": words}],
    )
    write(tmp_path / "pool.jsonl", [*rows, *leaks])
    return (
        [str(tmp_path / "pool.jsonl")],
        [str(tmp_path / "eval.jsonl")],
        {identity.question_id(one["question"]) for one in leaks},
    )


@pytest.mark.parametrize("preset", ["ours", "s1_paper"])
def test_no_row_with_an_evaluation_question_is_written_however_it_came(tmp_path, leaky, preset):
    """The second leak is one that Algorithm 1 chooses before any draw."""
    pool, against, leaks = leaky
    report = curate(pool, tmp_path / "out", against, preset=preset, size=60)
    assert not leaks & set(chosen(tmp_path / "out")) and report.stages[-1].name == "last_gate"
    dropped = {one["id"]: one for one in pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()}
    caught = [dropped[leak] for leak in leaks if dropped[leak]["rule"] == "decontamination"]
    assert caught and all(
        "eval.jsonl" in one["evidence"] and "train leaves the station" in one["evidence"] for one in caught
    )
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"| eval.jsonl | 2 | {len(caught)} |" in page and "train leaves the station" in page
    skipped = curate(pool, tmp_path / "skipped", against, preset=preset, size=0, skip=["decontamination"])
    assert leaks & set(chosen(tmp_path / "skipped")) and any("not compared" in note for note in skipped.notes)


def test_the_last_gate_holds_where_the_preset_does_not_look(tmp_path, leaky, monkeypatch):
    pool, against, leaks = leaky
    monkeypatch.setitem(presets._MAKERS, "s1_paper", lambda settings, check: [choice.s1(settings, mixed=False)])
    report = curate(pool, tmp_path / "out", against, preset="s1_paper", size=0)
    assert report.stages[-1].dropped == len(leaks) and not leaks & set(chosen(tmp_path / "out"))


def test_another_evaluation_set_is_another_key(tmp_path, leaky):
    pool, against, leaks = leaky
    write(tmp_path / "other.jsonl", [{"question": "Nothing of the pool is in this question about seven old ships."}])
    curate(pool, tmp_path / "out", [str(tmp_path / "other.jsonl")], size=0, skip=["near_duplicates"])
    assert leaks <= set(chosen(tmp_path / "out"))
    curate(pool, tmp_path / "out", against, size=0, skip=["near_duplicates"])
    assert not leaks & set(chosen(tmp_path / "out"))


@pytest.mark.parametrize(
    ("against", "sentence"),
    [
        ([], "--against is empty"),
        (["none", "gsm8k"], "has none and more"),
        (["no/such/file"], "neither a file nor a task"),
        (["EMPTY"], "has no questions"),
    ],
)
def test_evaluation_sets_that_are_not_there(tmp_path, rows, against, sentence):
    (tmp_path / "EMPTY").write_text("")
    against = [str(tmp_path / name) if name == "EMPTY" else name for name in against]
    with pytest.raises(UserError, match=sentence):
        curate([write(tmp_path / "a.jsonl", rows)], tmp_path / "out", against)


def test_the_plan_of_teacher_tokens_is_within_a_tenth_of_the_truth(tmp_path):
    """Difficulty first, planned from 1,000 answers to questions drawn at random; hard questions have longer answers."""
    rng = random.Random(0)
    rates = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    truth, pool = [], []
    for i in range(6000):
        rate = rng.choice(rates)
        truth.append((rate, rng.lognormvariate(7.6 - rate, 0.8)))
        pool.append({"question": f"What is {i} times {i + 3}?", "pass_rate": rate, "pass_tries": 4})
    for i in rng.sample(range(6000), 1000):
        pool[i]["completion_tokens"] = round(truth[i][1])
    report = curate(
        [write(tmp_path / "a.jsonl", pool)], tmp_path / "out", preset="questions", size=100, dollars_per_million=2.19
    )
    everything, asked, picked = report.plan.costs.values()
    real = sum(tokens for _, tokens in truth), sum(tokens for rate, tokens in truth if rate < 1)
    assert everything.tokens == pytest.approx(real[0], rel=0.1) and asked.tokens == pytest.approx(real[1], rel=0.1)
    assert abs(asked.tokens - real[1]) < 4 * asked.error
    assert everything.dollars == pytest.approx(everything.tokens * 2.19e-6)
    assert (everything.rows, asked.rows, picked.rows) == (6000, sum(rate < 1 for rate, _ in truth), 100)
    given = curate(
        [str(tmp_path / "a.jsonl")], tmp_path / "given", preset="questions", size=100, tokens_per_answer=3600
    )
    known = sum("completion_tokens" in one for one in pool)
    assert given.plan.costs["all questions"].tokens == 3600 * (6000 - known) + sum(
        one.get("completion_tokens", 0) for one in pool
    )
    bare = [write(tmp_path / "b.jsonl", [{"question": "What is 1 plus 1?", "pass_rate": 0.5}])]
    assert curate(bare, tmp_path / "bare", preset="questions").plan is None


def test_a_tokenizer_counts_traces_that_have_no_count(tmp_path, rows):
    without = [{k: v for k, v in one.items() if k != "trace_tokens"} for one in rows]
    source = [write(tmp_path / "a.jsonl", [*without, row(1000, trace_tokens=7)])]
    with pytest.raises(UserError, match="--tokenizer"):
        curate([write(tmp_path / "b.jsonl", without)], tmp_path / "none", preset="s1_paper")
    curate(source, tmp_path / "out", preset="s1_paper", size=0, tokenizer="package:countdown_tokenizer")
    tokens = Tokenizer.load("package:countdown_tokenizer")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    for one in lines:
        expected = len(tokens.encode_text(one["thinking_trajectories"][0]))
        assert one["trace_tokens"] == (7 if one["question"] == row(1000)["question"] else expected)
    notes = curate(
        [write(tmp_path / "c.jsonl", [{**without[1], "pass_rate": 0.5, "reasoning_tokens": 9}])], tmp_path / "c"
    ).notes
    assert "column reasoning_tokens is read as trace_tokens (1 rows)." in notes


def test_wrong_answers_are_dropped_where_that_is_asked_for(tmp_path, rows):
    file = write(tmp_path / "a.jsonl", rows)
    curate([file], tmp_path / "all", size=0)
    curate([file], tmp_path / "right", size=0, only_right=True)
    right = {identity.question_id(one["question"]) for one in rows if one["correct"]}
    assert set(chosen(tmp_path / "right")) == set(chosen(tmp_path / "all")) & right
    dropped = [
        one for one in pq.read_table(tmp_path / "right" / "dropped.parquet").to_pylist() if one["rule"] == "right"
    ]
    assert dropped and all(one["evidence"].startswith("Answer: ") and one["id"] not in right for one in dropped)
    with pytest.raises(UserError, match=r"--only_right looks at answers, and --preset=questions chooses questions"):
        curate([file], tmp_path / "questions", preset="questions", only_right=True)


def test_variants_of_a_template_are_kept_or_one_of_them(tmp_path):
    text = "A baker sells {} loaves on Monday and twice as many on Tuesday. How many loaves does he sell in all?"
    source = [write(tmp_path / "a.jsonl", [row(i, question=text.format(i), pass_rate=0.5) for i in range(5)])]
    assert curate(source, tmp_path / "keep", size=0).stages[-1].kept == 5
    report = curate(source, tmp_path / "one", size=0, templates="one")
    (near,) = (stage for stage in report.stages if stage.name == "near_duplicates")
    assert near.kept == 1 and "but for numbers" in str(near.reasons)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path, rows):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process curates"):
            curate([write(tmp_path / "a.jsonl", rows)], tmp_path / "out")
