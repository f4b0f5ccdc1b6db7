"""`s1jax.measure` as a whole: what it writes, what `s1jax.curate` makes of it, shares of processes, early stops."""

import json

import pytest

import s1jax
from s1jax.curation import answered, domains, labels, measure, pass_rate
from s1jax.curation.difficulty import PassRates
from s1jax.curation.domains import Clusters
from s1jax.data import identity
from s1jax.engine.description import Description
from s1jax.errors import UserError
from s1jax.io.journals import Journals, Share
from tests.curation.test_pass_rate import Answer

WORDS = ("apples", "trains", "angles", "primes")
ROWS = [{"question": f"How many {WORDS[i % 4]} has row {i}?", "solution": str(i), "source": "made"} for i in range(12)]


class Student:
    """Answers question i right in the first i tries."""

    def __init__(self):
        self.asked = []

    def describe(self):
        """An engine of no checkpoint."""
        return Description("", "0" * 64, None, "float32", "", "", 1, ("cpu",))

    def check(self, requests, params, /):
        """All requests fit."""
        return 9

    def stream(self, requests, params=None, /, *, system="", progress=None):
        """Yields answers in order."""
        for place, request in enumerate(requests):
            number = int(request.prompt.split()[-1].strip("?"))
            key = identity.question_id(request.prompt)
            attempt = [pass_rate.seed_of(request_seed, key, n) for request_seed in (5,) for n in range(8)].index(
                request.params.seed
            )
            self.asked.append((number, attempt))
            yield place, Answer(f"#### {number}" if attempt < number else "#### -1")


@pytest.fixture
def pool(tmp_path):
    """The file of a pool, with a row that cannot be graded and a verdict of an earlier measurement."""
    path = tmp_path / "pool.jsonl"
    rows = [*ROWS, {"question": "Why?", "pass_rate": 0.5, "pass_tries": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rates(student, **more):
    """The measurement that the tests make: 8 tries with the seed that the student knows."""
    return PassRates(student, 8, params=s1jax.SamplingParams(temperature=1.0, seed=5), **more)


def read(path):
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_curation_reads_what_was_measured(pool, tmp_path):
    student, notes, seen = Student(), [], []
    report = lambda done, total, speed: seen.append((done, total))  # noqa: E731
    found = s1jax.measure(
        [pool], tmp_path / "out", [rates(student, on_progress=report), Clusters(4)], on_note=notes.append
    )
    made = read(tmp_path / "out/rows.jsonl")
    assert [row.get("pass_rate") for row in made] == [*(min(i, 8) / 8 for i in range(12)), None]
    assert "pass_tries" not in made[-1] and len(student.asked) == 12 * 8
    assert seen[-1] == (96, 96) and found[0].summary.startswith("12 rows: the student is right in")
    assert notes == [f"1 of 13 rows cannot be graded and get no verdicts; the first: {pool}:13: no answer to grade"
                     " against; give the row a field `answer` or `solution`."]  # fmt: skip
    # The four kinds of questions are four clusters, and the last question is in one of them.
    assert len({(row["domain"], row["question"].split()[2]) for row in made[:12]}) == 4
    left = s1jax.curate(
        [str(tmp_path / "out/rows.jsonl")], tmp_path / "chosen", against=["none"], preset="questions", size=4
    )
    chosen = read(tmp_path / "chosen/rows.jsonl")
    assert len(chosen) == 4 and all(row["pass_rate"] < 1 for row in chosen)
    assert 0 < chosen[0]["pass_rate"] <= 0.5  # the first of its domain is one that is solved now and then
    reasons = {reason: count for stage in left.stages for reason, count in stage.reasons.items()}
    assert reasons["the student is right each time"] == 4


def test_the_same_call_tries_nothing_again(pool, tmp_path):
    s1jax.measure([pool], tmp_path / "out", [rates(Student())], on_note=print)
    before = (tmp_path / "out/rows.jsonl").read_bytes()
    student = Student()
    s1jax.measure([pool], tmp_path / "out", [rates(student)], on_note=print)
    assert not student.asked and (tmp_path / "out/rows.jsonl").read_bytes() == before


def test_questions_that_are_settled_early_are_counted(pool, tmp_path):
    student, notes = Student(), []
    s1jax.measure([pool], tmp_path / "out", [rates(student, stop_above=0.5)], on_note=notes.append)
    tries = [row["pass_tries"] for row in read(tmp_path / "out/rows.jsonl")[:12]]
    assert tries == [8, 8, 8, 8, 8, 5, 5, 5, 5, 5, 5, 5] and len(student.asked) == sum(tries)
    assert "7 rows were settled in fewer than 8 tries; their rates are above the limit, not exact." in notes


def test_processes_share_the_questions(pool, tmp_path, monkeypatch):
    """The second process first; the first one then finds its tries and writes what one process alone writes."""
    monkeypatch.setattr(PassRates, "_open", lambda self, path, run: Journals(path, run, self.share))
    s1jax.measure([pool], tmp_path / "alone", [rates(Student())], on_note=print)
    students = [Student(), Student()]
    for process in (1, 0):
        share = Share(process, 2)
        found = s1jax.measure([pool], tmp_path / "both", [rates(students[process], share=share)], on_note=print)
        assert (found is None) == (process == 1)
        assert (tmp_path / "both/rows.jsonl").exists() == (process == 0)
    assert not {number for number, _ in students[0].asked} & {number for number, _ in students[1].asked}
    assert [len(student.asked) for student in students] == [48, 48]
    assert (tmp_path / "both/rows.jsonl").read_bytes() == (tmp_path / "alone/rows.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: rates(Student(), stop_above=1.0), "stop_above is 1; give a rate"),
        (lambda: PassRates(Student(), 0), "tries is 0"),
        (lambda: PassRates(Student(), 2, params=s1jax.SamplingParams()), "temperature 0 gives 2 equal tries"),
        (lambda: Clusters(14), "13 different questions cannot be divided into 14 clusters"),
        (lambda: labels.Labels([]), "none of the rows has a domain"),
        (lambda: answered.TriesOf([], "runs/tries"), "runs/tries answers none of the 13 rows"),
    ],
)
def test_wrong_arguments_are_named(pool, tmp_path, made, words):
    with pytest.raises(UserError, match=words):
        s1jax.measure([pool], tmp_path / "out", [made()], on_note=print)
    assert not (tmp_path / "out/rows.jsonl").exists()


def test_nothing_to_measure_is_named(pool, tmp_path):
    with pytest.raises(UserError, match="nothing is to be measured"):
        s1jax.measure([pool], tmp_path / "out", [])
    with pytest.raises(UserError, match=r"pool.jsonl is not a folder"):
        s1jax.measure([pool], pool, [Clusters(2)])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty.jsonl holds no rows"):
        measure.read([tmp_path / "empty.jsonl"], print)


def test_domains_of_rows_in_any_shape():
    message = {"messages": [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "<think>x</think>y"}]}
    rows = [("f:1", {"question": "a?"}), ("f:2", message), ("f:3", {"problem": "c?", "answer": "3"})]
    assert domains.questions(rows) == ["a?", "b?", "c?"]
    assert domains.summary([None]) == "1 rows: none has a domain"


def test_rows_are_not_measured_in_place(tmp_path):
    text = json.dumps({"question": "q", "solution": "1"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"would be read and .* written over it"):
        s1jax.measure([tmp_path / "rows.jsonl"], tmp_path, [Clusters(2)])
    assert (tmp_path / "rows.jsonl").read_text() == text
