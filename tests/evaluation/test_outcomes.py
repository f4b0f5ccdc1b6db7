"""Verdicts and lines of the table, against sums written out by hand."""

import dataclasses

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.evaluation import metrics, outcomes, strategies
from s1jax.tasks import task as task_lib

TASK = task_lib.Task(
    "sums", [{}], lambda text, row: text or None, lambda a, b: a == b, lambda answer, row: answer == row["right"]
)
TASK_OF_TWO = dataclasses.replace(TASK, rows=[{"right": "1"}, {"right": "2"}])
ROWS = [{"right": "1"}, {"right": "2"}]


def sample(attempt, answer, thinking, answering=3, end="natural"):
    return {
        "attempt": attempt, "answer": answer, "thinking_tokens": thinking, "answer_tokens": answering,
        "thinking_end": end, "ids": [1, 2, 3],
    }  # fmt: skip


def settle(text, *problems):
    strategy = strategies.parse(text)
    return strategy, [
        outcomes.settle(strategy, TASK, row, found) for row, found in zip(ROWS, problems, strict=True)
    ]  # fmt: skip


PARAMS = SamplingParams(seed=7, max_thinking_tokens=50)


def test_what_a_run_wants_next():
    def places(text, *rows):
        done = [
            {"problem": i, "attempt": j, "thinking_tokens": tokens, "thinking_end": "natural"} for i, j, tokens in rows
        ]
        found = outcomes.wanted(strategies.parse(text), TASK_OF_TWO, ["a?", "b?"], PARAMS, done)
        for one in found:
            assert one.row["question"] == ["a?", "b?"][one.problem] and one.row["right"] == str(one.problem + 1)
            assert one.row["seed"] == 7 + one.problem + 2 * one.attempt
        return [(one.problem, one.attempt) for one in found]

    assert places("none") == [(0, 0), (1, 0)] and places("none", (1, 0, 5)) == [(0, 0)]
    assert places("none", (1, 0, 5), (0, 0, 5)) == []
    assert places("majority:3") == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    # Stopped between: what is missing, wherever it is.
    assert places("majority:3", (0, 2, 5), (1, 1, 5), (0, 0, 5)) == [(0, 1), (1, 0), (1, 2)]
    assert places("reject:max=4:samples=2") == [(0, 0), (1, 0)]
    assert places("reject:max=4:samples=2", (0, 0, 5), (1, 0, 4)) == [(0, 1)]
    assert places("reject:max=4:samples=2", (0, 0, 5), (1, 0, 4), (0, 1, 5)) == []


def test_one_sample_a_problem():
    strategy, found = settle("forcing:max=20", [sample(0, "1", 20, end="cut")], [sample(0, "", 8)])
    assert [outcome.right for outcome in found] == [True, False] and found[0].chosen == 0
    assert "ids" not in found[0].samples[0]
    run = outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 7.2, dollars_per_hour=2.0)
    accuracy, error = metrics.accuracy([True, False])
    assert run == metrics.Run(
        name="cut at 20", label="cut at 20", families=("budgets",), parallel=False, problems=2, accuracy=accuracy,
        error=error, thinking_tokens=14, answer_tokens=3, total_tokens=17, samples=1, control=100, in_range=True,
        cut=50, seconds=7.2, dollars=pytest.approx(7.2 / 3600 * 2 / 2),
    )  # fmt: skip
    assert outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 7.2).dollars is None


def test_votes_count_all_samples():
    votes = [sample(2, "1", 30), sample(0, "5", 10), sample(1, "1", 20)]
    wrong = [sample(0, "3", 10), sample(1, "2", 10), sample(2, "3", 10)]
    strategy, found = settle("majority:3", votes, wrong)
    assert [one["attempt"] for one in found[0].samples] == [0, 1, 2]
    assert found[0].chosen == 1 and found[0].correct == [False, True, True] and found[0].right
    assert found[1].chosen == 0 and found[1].correct == [False, True, False] and not found[1].right
    run = outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=25), 1.0)
    assert (run.thinking_tokens, run.answer_tokens, run.total_tokens, run.samples) == (45, 9, 54, 3)
    assert run.control == pytest.approx(100 * 5 / 6) and run.in_range and run.parallel and run.accuracy == 50


def test_rejected_samples_cost_and_do_not_count():
    strategy, found = settle(
        "reject:max=10:samples=2",
        [sample(0, "1", 11, end="cut"), sample(1, "1", 8)],
        [sample(0, "2", 11, end="cut"), sample(1, "2", 11, end="cut")],
    )
    assert found[0].chosen == 1 and found[0].right
    assert found[1].chosen is None and found[1].correct == [True, True] and not found[1].right
    run = outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 1.0)
    assert run.thinking_tokens == (8 + 11) / 2 and run.total_tokens == (19 + 22 + 6 + 6) / 2 and run.samples == 2
    assert run.control == 50 and run.cut == 50 and run.accuracy == 50 and run.in_range


def test_classes_are_measured_by_runs_without_control():
    strategy, found = settle("class:short", [sample(0, "1", 8)], [sample(0, "2", 9)])
    run = outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 1.0, plain=[9, 9])
    assert run.control == 50 and run.in_range
    assert (
        outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 1.0, plain=[8, 9]).in_range
        is False
    )
    unknown = outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 1.0)
    assert unknown.control is None and unknown.in_range is None


def test_undecided_answers_are_not_right_and_are_counted():
    task = dataclasses.replace(TASK, right=lambda answer, row: None if answer == "9^9^9" else answer == row["right"])
    strategy = strategies.parse("none")
    found = [
        outcomes.settle(strategy, task, row, [sample(0, answer, 5)])
        for row, answer in zip(ROWS, ("9^9^9", "2"), strict=True)
    ]
    assert [outcome.correct for outcome in found] == [[None], [True]]
    assert [outcome.right for outcome in found] == [False, True] and [one.undecided for one in found] == [True, False]
    run = outcomes.summarise(strategy, found, SamplingParams(max_thinking_tokens=100), 1.0)
    assert run.undecided == 1 and run.accuracy == 50 and metrics.record(run)["undecided"] == 1


def test_a_verdict_is_kept_for_the_same_grader_answer_and_row():
    asked = []

    def right(answer, row):
        asked.append(answer)
        return answer == row["right"]

    def same(one, other):
        asked.append((one, other))
        return one == other

    task = dataclasses.replace(TASK, right=right, same=same)
    strategy = strategies.parse("majority:2")
    samples = [sample(0, "1", 5), sample(1, "3", 5)]
    first = outcomes.settle(strategy, task, ROWS[0], samples)
    assert len(asked) == 3
    kept = [
        row | {"mark": mark, "correct": correct, "chosen": i == first.chosen}
        for i, (row, mark, correct) in enumerate(zip(samples, first.marks, first.correct, strict=True))
    ]
    asked.clear()
    assert outcomes.settle(strategy, task, ROWS[0], kept) == first and asked == []
    outcomes.settle(strategy, task, ROWS[0], [kept[0], kept[1] | {"answer": "1"}])
    assert asked == ["1", ("1", "1")]  # what was edited is graded, and the vote counted
    asked.clear()
    outcomes.settle(strategy, task, ROWS[1], kept)
    assert asked == ["1", "3", ("1", "3")]
    asked.clear()
    outcomes.settle(strategy, dataclasses.replace(task, grader="exact, 2"), ROWS[0], kept)
    assert asked == ["1", "3", ("1", "3")]
