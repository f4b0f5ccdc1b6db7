"""Turns the rows of a pool into problems that can be graded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.curation.measurement import Named
from s1jax.curation.pass_rate import Problem
from s1jax.data import identity
from s1jax.errors import UserError
from s1jax.tasks import benchmarks
from s1jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Graded:
    """The rows of a pool as problems of a task.

    Attributes:
      task: grades them.
      problems: one a row; None where the row cannot be graded.
      reasons: a sentence for each row that cannot be graded.
    """

    task: Task
    problems: list[Problem | None]
    reasons: list[str]

    def notes(self) -> list[str]:
        """Returns what a user should know: how many rows cannot be graded, and why the first cannot."""
        if not self.reasons:
            return []
        return [
            f"{len(self.reasons):,} of {len(self.problems):,} rows cannot be graded and get no verdicts; the first:"
            f" {self.reasons[0]}"
        ]


def graded(rows: Sequence[Named], kind: str) -> Graded:
    """Returns rows as problems.

    Args:
      rows: of a pool.
      kind: name of the task whose grading they get (`benchmarks.NAMES`); empty: as mathematics.

    Raises:
      UserError: `kind` is not the name of a task, there are no rows, or none can be graded.
    """
    _check(kind)
    if not rows:
        raise UserError("there are no rows to measure; give at least one question.")
    problems: list[Problem | None] = []
    reasons: list[str] = []
    for name, columns in rows:
        try:
            problems.append(Problem(benchmarks.problem(kind, columns, name, _number(columns)), name))
        except UserError as error:
            problems.append(None)
            reasons.append(str(error))
    if len(reasons) == len(rows):
        raise UserError(f"none of the {len(rows):,} rows can be graded; the first: {reasons[0]}")
    title = f"{kind or 'pool'}, {len(rows):,} rows"
    task = benchmarks.graded(kind, title, [dict(problem.row) for problem in problems if problem is not None])
    return Graded(task, problems, reasons)


def limits(kind: str) -> tuple[int, int]:
    """Returns the most tokens of thinking and of an answer that a task gives by default; `kind` as for `graded`."""
    _check(kind)
    task = benchmarks.graded(kind, "", [])
    return task.max_thinking_tokens, task.max_answer_tokens


def _check(kind: str) -> None:
    if kind and kind not in benchmarks.NAMES:
        raise UserError(f"--task={kind:.40} is not a task; give one of {', '.join(benchmarks.NAMES)}, or leave it out.")


def _number(columns: Mapping[str, Any]) -> int:
    """A number that shuffles the choices of a question, the same in any order of rows."""
    question = columns.get("question", columns.get("Question"))
    return int(identity.question_id(question)[:8], 16) if isinstance(question, str) else 0
