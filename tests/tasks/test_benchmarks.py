"""Tasks: their rows, what counts as an answer and as the same one, and what they say to wrong files."""

import csv
import itertools
import json
import pathlib
import random
import re

import pytest

from s1jax.errors import UserError
from s1jax.tasks import benchmarks
from s1jax.tasks.countdown import four, problems

GSM8K = pathlib.Path(__file__).resolve().parents[3] / "shared/data/gsm8k_test.jsonl"
GPQA = {
    "Question": " Which one? ",
    "Correct Answer": "right",
    "Incorrect Answer 1": "wrong",
    "Incorrect Answer 2": "bad",
    "Incorrect Answer 3": "off",
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_countdown_is_easy_or_hard():
    every = benchmarks.load("countdown")
    easy, hard = benchmarks.load("countdown_easy"), benchmarks.load("countdown_hard")
    assert every.rows == problems.prompt_rows("test") and every.max_thinking_tokens == 384
    assert easy.rows == [row for row in every.rows if not row["hard"]]
    assert hard.rows == [row for row in every.rows if row["hard"]]
    assert benchmarks.load("countdown_hard", 7).title == "hard countdown (test), 7 held-out problems"
    assert benchmarks.load("countdown_easy", 3, "dev").rows[0] == next(
        row for row in problems.prompt_rows("dev") if not row["hard"]
    )


def test_expressions_are_the_same_answer_where_numbers_and_value_are():
    task = benchmarks.load("countdown", 1)
    row = {"numbers": [3, 7, 1], "target": 21}
    assert task.answer("Final Answer: (7*1)*3", row) == "(7*1)*3" and task.answer("so what", row) is None
    assert task.same("(7*1)*3", "3*7*1") and not task.same("(7*1)*3", "7*3") and not task.same("7+", "8+")
    assert task.same("7+", "7+") and not task.same("7+", "7+3")
    assert task.grade("Final Answer: 3*(7*1)", row) and not task.grade("Final Answer: 7*3", row)
    assert not task.grade("", row)


def brute_values(numbers):
    """All values by trying every order of all moves on a list, none of them outside 0..99."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = [numbers[k] for k in range(len(numbers)) if k not in (i, j)]
        x, y = numbers[i], numbers[j]
        for value in (x + y, x * y, abs(x - y)):
            if value <= 99:
                found |= brute_values([*rest, value])
    return found


def test_values_of_four_numbers_against_every_order_of_moves():
    rng = random.Random(0)
    for _ in range(10):
        numbers = tuple(sorted(rng.sample(range(1, 16), 4)))
        assert four.values(numbers) == brute_values(list(numbers))
    assert four.values((3, 7)) == {10, 21, 4}


def test_four_numbers_are_solvable_and_split():
    rows = {split: four.prompt_rows(split) for split in problems.SPLITS}
    sets = {split: {tuple(sorted(row["numbers"])) for row in found} for split, found in rows.items()}
    assert sum(map(len, rows.values())) == 1365 == len(set.union(*sets.values()))
    for row in rows["test"][:20]:
        assert row["target"] in brute_values(row["numbers"])
        assert row["question"] == f"Make {row['target']} from {' '.join(map(str, row['numbers']))}"
        problems.encode(row["question"])
    task = benchmarks.load("countdown_four", 2)
    assert task.rows == rows["test"][:2] == four.prompt_rows("test", 2)
    assert task.grade("Final Answer: (1+2)*(7-3)", {"numbers": [7, 1, 3, 2], "target": 12})
    with pytest.raises(UserError, match="sets of four; 5000"):
        benchmarks.load("countdown_four", 5000)


def test_a_system_prompt_is_part_of_the_prompt_row(tmp_path):
    rows = [{"question": "q", "answer": 1, "system": "Be brief."}, {"question": "q", "answer": 1, "system": None}]
    task = benchmarks.load(write(tmp_path / "a.jsonl", rows))
    assert [row.get("system") for row in task.rows] == ["Be brief.", None]
    with pytest.raises(UserError, match=r"b\.jsonl:1: system is 3; it must be a text"):
        benchmarks.load(write(tmp_path / "b.jsonl", [{"question": "q", "answer": 1, "system": 3}]))


def test_a_folder_gives_its_test_split(tmp_path):
    for name in ("train", "validation", "test"):
        write(tmp_path / f"{name}.jsonl", [{"question": name, "answer": 1}])
    task = benchmarks.load(str(tmp_path))
    assert [row["question"] for row in task.rows] == ["test"] and task.title == f"{tmp_path.name}, 1 problems"
    assert "split test is taken, test.jsonl; left out: train (train.jsonl, 1 row)" in task.notes[0]
    (tmp_path / "test.jsonl").unlink()
    assert [row["question"] for row in benchmarks.load(f"gsm8k:{tmp_path}").rows] == ["validation"]
    (tmp_path / "validation.jsonl").unlink()
    task = benchmarks.load(str(tmp_path))
    assert [row["question"] for row in task.rows] == ["train"] and "split train is taken" in task.notes[0]


def test_long_questions_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl:1: question has 1,000,001 characters; at most 1,000,000 are read"):
        benchmarks.load(write(tmp_path / "a.jsonl", [{"question": "x" * 1_000_001, "answer": 1}]))


def test_rows_are_called_by_their_place(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('\n{"question": "q", "answer": 1}\n')
    assert benchmarks.load(str(file)).place(0) == f"{file}:2"
    assert benchmarks.load("countdown", 3).place(2) == "problem 2 of countdown (test), 3 held-out problems"


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not at hand (../shared/data)")
def test_gsm8k_from_its_own_file():
    task = benchmarks.load(f"gsm8k:{GSM8K}", 3)
    assert [row["reference"] for row in task.rows] == ["18", "3", "70000"]
    assert task.title == "gsm8k, 3 problems"
    assert task.grade("Final Answer: $18.", task.rows[0]) and not task.grade("Final Answer: 19", task.rows[0])
    assert task.grade("Final Answer: 70,000 dollars", task.rows[2])
    assert not task.grade("Final Answer: $18.00", task.rows[0])  # lm_eval compares the text of the number


def test_columns_of_math500_and_aime(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"problem": "p", "solution": "long\n\\boxed{1}", "answer": "\\frac{1}{2}"}])
    assert benchmarks.load(f"math500:{file}").rows == [{"question": "p", "reference": "\\frac{1}{2}"}]
    rows = [{"Problem": "p", "Solution": "s", "Answer": "025"}, {"question": "q", "answer": 7}]
    rows += [{"problem": "r", "solution": "so \\boxed{108}"}, {"problem": "s", "answer": "000"}]
    rows += [{"problem": "t", "answer": degrees} for degrees in (r"336^\circ", r"36^{\circ}", "090°")]
    others = ("$25$", "$025$", "25.00", "25.", r"\(25\)", r"$25^\circ$", r"\text{25}", "+25")
    rows += [{"problem": "u", "answer": written} for written in others]
    task = benchmarks.load("aime24:" + write(tmp_path / "b.jsonl", rows))
    assert [row["reference"] for row in task.rows] == ["25", "7", "108", "0", "336", "36", "90", *["25"] * len(others)]
    assert task.grade(r"\boxed{336^\circ}", task.rows[4]) and task.grade(r"\boxed{336}", task.rows[4])
    assert task.grade("\\boxed{025}", task.rows[0]) and task.grade("\\boxed{25}", task.rows[0])
    assert (
        task.answer("so \\boxed{m+n = 025}", task.rows[0]) == "25" and task.answer("\\boxed{2.5}", task.rows[0]) is None
    )
    with pytest.raises(UserError, match=r"c\.jsonl:2: answer '1000' is not a whole number of 0\.\.999"):
        benchmarks.load("aime25:" + write(tmp_path / "c.jsonl", [*rows[1:2], {"question": "q", "answer": 1000}]))


def test_gpqa_shuffles_the_choices_the_same_way_every_time(tmp_path):
    file = write(tmp_path / "a.jsonl", [GPQA] * 40)
    task = benchmarks.load(f"gpqa:{file}")
    assert task.rows == benchmarks.load(f"gpqa:{file}").rows
    assert {row["reference"] for row in task.rows} == set("ABCD")
    for row in task.rows:
        assert sorted(row["choices"]) == ["bad", "off", "right", "wrong"]
        shown = re.fullmatch(r"Which one\?\n\nA\) (.*)\nB\) (.*)\nC\) (.*)\nD\) (.*)", row["question"])
        assert list(shown.groups()) == row["choices"]
        assert shown["ABCD".index(row["reference"]) + 1] == "right"
        assert task.grade(f"Answer: ({row['reference']})", row) and task.grade("Answer: right", row)
        assert not task.grade("Answer: wrong", row)
    table = tmp_path / "a.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, GPQA)
        writer.writeheader()
        writer.writerows([GPQA] * 2)
    assert benchmarks.load(f"gpqa:{table}").rows == task.rows[:2]
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())  # as a spreadsheet saves it
    assert benchmarks.load(f"gpqa:{table}").rows == task.rows[:2]
    table.write_bytes(table.read_bytes() + b"\xff,\n")
    with pytest.raises(UserError, match=r"a.csv is not CSV in UTF-8"):
        benchmarks.load(f"gpqa:{table}")


def test_wrong_choices_may_be_alike(tmp_path):
    file = write(tmp_path / "a.jsonl", [{**GPQA, "Incorrect Answer 1": "bad"}])
    (row,) = benchmarks.load(f"gpqa:{file}").rows
    assert row["choices"]["ABCD".index(row["reference"])] == "right" and row["choices"].count("bad") == 2


@pytest.mark.parametrize("answer", ["B", "b", 1, "8 m"])
def test_choices_in_a_list(tmp_path, answer):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "choices": ["7", "8 m", "9"], "answer": answer}])
    task = benchmarks.load(f"choices:{file}")
    assert task.rows[0]["reference"] == "B" and task.rows[0]["question"] == "q\n\nA) 7\nB) 8 m\nC) 9"


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("choices", {"question": "q", "answer": "A"}, r"1: no list `choices`"),
        (
            "choices",
            {"question": "q", "choices": ["a"], "answer": "A"},
            r"1: the choices are \['a'\]; give 2 to 26, none",
        ),
        ("choices", {"question": "q", "choices": ["a", ""], "answer": "A"}, "none of them empty"),
        ("choices", {"question": "q", "choices": ["a", None], "answer": "A"}, "none of them empty"),
        ("gpqa", {**GPQA, "Incorrect Answer 1": None}, "none of them empty"),
        ("choices", {"question": "q", "choices": ["a", "a"], "answer": "A"}, "1: the right choice 'a' is there twice"),
        ("choices", {"question": "q", "choices": ["a", "b"], "answer": "C"}, r"1: `answer` is 'C'"),
        (
            "choices",
            {"question": "q", "choices": ["B", "A"], "answer": "A"},
            r"1: `answer` 'A' is the text of one choice and the letter of another",
        ),
        ("choices", {"question": "q", "choices": ["a", "b"], "answer": 2}, r"1: `answer` is 2"),
        ("choices", {"question": "q", "choices": ["a", "b"]}, r"1: `answer` is None"),
        ("gpqa", {**GPQA, "Incorrect Answer 1": "right"}, "1: the right choice 'right' is there twice"),
        ("gsm8k", {"answer": "#### 4"}, "1: no text `question`"),
        ("gsm8k", {"question": "q"}, "1: no answer to grade against"),
        ("aime24", {"question": "q", "answer": "x"}, "not a whole number"),
        ("aime24", {"question": "q", "answer": "2.5"}, "not a whole number"),
        ("aime24", {"question": "q", "answer": "-3"}, "not a whole number"),
        ("gsm8k", {"question": "half a \ud83d", "answer": "#### 4"}, "1 is not valid Unicode"),
    ],
)
def test_wrong_rows_are_named(tmp_path, kind, row, message):
    with pytest.raises(UserError, match=message):
        benchmarks.load(f"{kind}:" + write(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("nothing.jsonl", 0, "nothing.jsonl does not exist; countdown, .*gsm8k.* are the names of tasks"),
        ("choices", 0, "needs a file"),
        ("", 0, "--task names no task; give a file of rows, or one of countdown, "),
        ("{empty}", 0, "empty.jsonl holds no rows"),
        ("{two}", 3, "--num_problems is 3, but .*two.jsonl holds 2 rows"),
        ("countdown_easy", 10**6, "easy problems; 1000000 were asked for"),
    ],
)
def test_wrong_tasks(tmp_path, name, number, message):
    names = {"empty": write(tmp_path / "empty.jsonl", [])}
    names["two"] = write(tmp_path / "two.jsonl", [{"question": "q", "answer": 1}] * 2)
    with pytest.raises(UserError, match=message):
        benchmarks.load(name.format(**names), number)


def test_the_hub_out_of_reach_names_the_remedy(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"task aime25 cannot be downloaded .* give --task=aime25:FILE"):
        benchmarks.load("aime25")


def test_the_hub_gives_the_files_of_the_task(monkeypatch, tmp_path):
    import huggingface_hub

    folder = tmp_path / "datasets--opencompass--AIME2025" / "snapshots" / ("0123456789" * 4)
    folder.mkdir(parents=True)
    for number in (1, 2):
        write(folder / f"part{number}.jsonl", [{"question": f"q{number}", "answer": f"00{number}"}])
    asked = []

    def give(repository, repo_type, revision, allow_patterns):
        asked.append((repository, repo_type, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    task = benchmarks.load("aime25")
    assert [row["reference"] for row in task.rows] == ["1", "2"]
    assert task.notes == [
        f"aime25 is opencompass/AIME2025 at revision {'0123456789' * 4}; --task=aime25@REVISION chooses one."
    ]
    assert benchmarks.load("aime25@v1").rows == task.rows
    assert asked == [("opencompass/AIME2025", "dataset", revision, ["*.jsonl"]) for revision in (None, "v1")]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": "two and two\nmake <<2+2=4>>4.\n#### 4"}, "4"),
        ({"answer": "#### 70,000"}, "70,000"),
        ({"answer": 25}, "25"),
        ({"answer": 2.5}, "2.5"),
        ({"answer": " 025 "}, "025"),
        ({"answer": "(3, \\frac{\\pi}{2})", "solution": "so $\\boxed{4}$"}, "(3, \\frac{\\pi}{2})"),
        ({"solution": "We see\nthat it is $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        ({"answer": "", "solution": "4"}, "4"),
        ({"answer": None, "solution": "Answer: 4"}, "4"),
    ],
)  # fmt: skip
def test_reference_answers(row, answer):
    assert benchmarks._reference(row, "rows.jsonl:1") == answer


@pytest.mark.parametrize(
    "row",
    [{}, {"question": "2+2"}, {"answer": ""}, {"answer": [4]}, {"answer": True}, *json.loads(
        '[{"answer": NaN}, {"answer": Infinity}, {"answer": -Infinity, "solution": NaN}]'
    )],
)  # fmt: skip
def test_a_row_without_an_answer_is_named(row):
    with pytest.raises(UserError, match=r"rows\.jsonl:3: no answer.*`answer` or `solution`"):
        benchmarks._reference(row, "rows.jsonl:3")


def test_an_answer_that_nothing_can_match_is_named():
    with pytest.raises(UserError, match=r"rows\.jsonl:3: the answer in `answer` has 5000 characters.*give a shorter"):
        benchmarks._reference({"answer": "1" * 5000}, "rows.jsonl:3")


def test_a_worked_solution_without_a_marked_answer_is_named():
    with pytest.raises(UserError, match=r"rows\.jsonl:3: `answer` has several lines"):
        benchmarks._reference({"answer": "first this\nthen that"}, "rows.jsonl:3")


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not at hand (../shared/data)")
def test_all_of_gsm8k_grades_itself_right_and_its_neighbour_wrong():
    task = benchmarks.load(f"gsm8k:{GSM8K}")
    solutions = [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()]
    assert len(task.rows) == 1319
    for row, other, solution in zip(task.rows, task.rows[1:] + task.rows[:1], solutions, strict=True):
        assert task.grade(solution, row)
        same = row["reference"].replace(",", "") == other["reference"].replace(",", "")
        assert task.grade(f"Final Answer: ${other['reference']}", row) == same


GSM8K_TEXTS = [
    "Final Answer: 18",
    "#### 18",
    "so 9*2 = $18.",
    "$18.00",
    "It is 18 dollars, 2 a day.",
    "1,8",
    "eighteen",
    "",
    "18.",
    "-18",
    "Final Answer: \\boxed{18}",
    "18 or 19",
    "19, no, 18",
    "18%",
    "18...",
    "the answer is 18,",
    "$18",
    "018",
    "#### 1.8e1",
]


def test_gsm8k_is_graded_as_lm_eval_does(tmp_path):
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    metrics = pytest.importorskip("lm_eval.api.metrics")
    last = extraction.RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    task = benchmarks.load("gsm8k:" + write(tmp_path / "a.jsonl", [{"question": "q", "answer": "2*9=18\n#### 18"}]))
    for text in GSM8K_TEXTS:
        (given,) = last.apply([[text]], [{}])[0]
        ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
        wanted = metrics.exact_match_fn(
            predictions=[given], references=["2*9=18\n#### 18"], regexes_to_ignore=ignored, ignore_case=True
        )["exact_match"]
        assert task.grade(text, task.rows[0]) == bool(wanted), text


def test_aime_is_graded_as_lm_eval_does_on_whole_numbers(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.aime import utils

    task = benchmarks.load("aime24:" + write(tmp_path / "a.jsonl", [{"question": "q", "answer": "25"}]))
    for text in (
        "so \\boxed{25}",
        "\\boxed{24}",
        "\\boxed{250}",
        "$25$",
        "\\boxed{n=25}",
        "\\boxed{25^\\circ}",
        "\\boxed{-25}",
    ):
        assert task.grade(text, task.rows[0]) == bool(utils.process_results({"answer": "25"}, [text])["exact_match"])
    assert task.grade("\\boxed{025}", task.rows[0])  # lm_eval's compares the text; contests write three digits


def test_undecided_answers_share_no_vote_and_answers_without_letters_do_not_merge(tmp_path):
    task = benchmarks.load("math500:" + write(tmp_path / "a.jsonl", [{"question": "q", "answer": "\\frac{1}{7}"}]))
    assert task.grade("\\boxed{9^{9^{9}}}", task.rows[0]) is None
    assert not task.same("9^{9^{9}}", "9^{9^{9^{9}}}") and task.same("9^{9^{9}}", "9^{9^{9}}")
    assert not task.same("\\frac12ab", "\\frac12bc") and not task.same("\\angle ABC", "\\angle DEF")
    assert task.same("\\frac12ab", "\\frac12ba")
