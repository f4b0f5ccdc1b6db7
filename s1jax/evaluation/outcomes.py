"""From the samples of a strategy to its verdicts, and from those to its line in the table."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from s1jax.config.sampling import SamplingParams
from s1jax.evaluation import metrics
from s1jax.evaluation.strategies import Strategy
from s1jax.tasks.task import Row, Task

# Of a sample, what a table is made of; the rest is in the file of all samples.
FIELDS = ("attempt", "thinking_tokens", "answer_tokens", "thinking_end", "answer")
# What a hand-off is made of; samples of earlier versions have none.
_MORE_FIELDS = ("confidence", "usage")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one problem.

    Attributes:
      samples: all that were drawn, in the order of their attempts, with at least `FIELDS`.
      correct: whether each of them is right; None: undecided, because the comparison did not end.
      chosen: place of the one whose answer counts; None where none does.
      marks: of each sample, `Task.mark` of its verdict.
    """

    samples: list[dict[str, Any]]
    correct: list[bool | None]
    chosen: int | None
    marks: list[str] = dataclasses.field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether the answer that counts is right."""
        return self.chosen is not None and self.correct[self.chosen] is True

    @property
    def undecided(self) -> bool:
        """Whether nothing is known about the answer that counts."""
        return self.chosen is not None and self.correct[self.chosen] is None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A sample to draw: its prompt `row`, the number of its `problem` and of the `attempt` at it."""

    problem: int
    attempt: int
    row: dict[str, Any]


def wanted(
    strategy: Strategy,
    task: Task,
    questions: Sequence[str],
    params: SamplingParams,
    rows: Sequence[Row],
) -> list[Wanted]:
    """Returns the samples that a run needs next; none where it is done. Those of one problem stand side by side.

    Sample j of problem i of n has the seed + i + j n, so that no two of a run have the same and runs differ in their
    strategies only.

    Args:
      strategy: of the run.
      task: its problems.
      questions: one a problem, with the strategy's instruction.
      params: sampling parameters that hold for all runs.
      rows: what was sampled already, in any order, each with `problem` and `attempt`.
    """
    have: list[dict[int, Row]] = [{} for _ in task.rows]
    for row in rows:
        have[row["problem"]][row["attempt"]] = row
    found = []
    for i, row in enumerate(task.rows):
        number = strategy.wanted([have[i][attempt] for attempt in sorted(have[i])])
        missing = (attempt for attempt in itertools.count() if attempt not in have[i])
        for attempt in itertools.islice(missing, number):
            seed = params.seed + i + attempt * len(task.rows)
            found.append(Wanted(i, attempt, strategy.row(row, questions[i], seed, params)))
    return found


def settle(strategy: Strategy, task: Task, row: Row, samples: Sequence[Row]) -> Outcome:
    """Grades the samples of one problem and chooses among them.

    A verdict that a sample already has (`correct` and its `mark`, as samples.jsonl keeps them) is kept where its
    grader, answer and row are the same: grading hostile answers is slow. So is a choice where all samples have one.

    Args:
      strategy: that they were drawn for.
      task: that the problem belongs to.
      row: of the problem.
      samples: in any order.
    """
    ordered = sorted(samples, key=lambda sample: sample["attempt"])
    answers = [task.answer(sample["answer"], row) for sample in ordered]
    marks = [task.mark(sample["answer"], row) for sample in ordered]
    known = [sample.get("mark") == mark and "correct" in sample for sample, mark in zip(ordered, marks, strict=True)]
    correct = [
        sample["correct"] if kept else False if answer is None else task.right(answer, row)
        for sample, kept, answer in zip(ordered, known, answers, strict=True)
    ]
    if all(known) and all("chosen" in sample for sample in ordered):
        chosen = next((i for i, sample in enumerate(ordered) if sample["chosen"]), None)
    else:
        chosen = strategy.choose(ordered, answers, task.same)
    kept = [
        {name: sample[name] for name in FIELDS} | {name: sample[name] for name in _MORE_FIELDS if name in sample}
        for sample in ordered
    ]
    return Outcome(kept, correct, chosen, marks)


def summarise(
    strategy: Strategy,
    outcomes: Sequence[Outcome],
    params: SamplingParams,
    seconds: float,
    dollars_per_hour: float = 0.0,
    plain: Sequence[int] | None = None,
) -> metrics.Run:
    """Returns the run that the outcomes of all problems make.

    Args:
      strategy: that they belong to.
      outcomes: one a problem, at least one.
      params: that hold for all runs.
      seconds: that sampling took, over all problems.
      dollars_per_hour: of the machine that sampled; 0: not known.
      plain: thinking tokens of the same problems without any control, see `Strategy.range`.
    """
    counted = [strategy.counted(outcome.samples, outcome.chosen) for outcome in outcomes]
    thinking = [sample["thinking_tokens"] for samples in counted for sample in samples]
    asked = strategy.range(params.max_thinking_tokens, plain)
    control, in_range = None, None
    if asked is not None:
        low, high = (_spread(bound, [len(samples) for samples in counted]) for bound in asked)
        control = metrics.control(thinking, low, high)
        in_range = statistics.fmean(low) <= statistics.fmean(thinking) <= statistics.fmean(high)
    accuracy, error = metrics.accuracy([outcome.right for outcome in outcomes])
    count = len(outcomes)
    every = [sample for outcome in outcomes for sample in outcome.samples]
    cut = [sample["thinking_end"] == "cut" for samples in counted for sample in samples]
    return metrics.Run(
        name=strategy.name(params.wait),
        label=strategy.label(params.wait),
        families=strategy.families(params.wait),
        parallel=strategy.parallel,
        problems=count,
        accuracy=accuracy,
        error=error,
        thinking_tokens=sum(thinking) / count,
        answer_tokens=sum(sample["answer_tokens"] for samples in counted for sample in samples) / count,
        total_tokens=sum(sample["thinking_tokens"] + sample["answer_tokens"] for sample in every) / count,
        samples=len(every) / count,
        control=control,
        in_range=in_range,
        cut=100 * sum(cut) / len(cut),
        seconds=round(seconds, 2),
        undecided=sum(outcome.undecided for outcome in outcomes),
        dollars=seconds / 3600 * dollars_per_hour / count if dollars_per_hour else None,
    )


def _spread(bound: float | Sequence[float], counts: Sequence[int]) -> list[float]:
    """Returns the bound of every counted sample, from one of all problems or one of each."""
    bounds = [bound] * len(counts) if isinstance(bound, (int, float)) else bound
    return [one for one, count in zip(bounds, counts, strict=True) for _ in range(count)]
