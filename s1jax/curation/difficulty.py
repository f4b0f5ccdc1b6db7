"""Gives the rows of a pool the columns `pass_rate` and `pass_tries`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.curation.pass_rate import Problem, Rate
from s1jax.data import identity
from s1jax.errors import UserError
from s1jax.tasks import benchmarks
from s1jax.tasks.task import Task

Named = tuple[str, Mapping[str, Any]]  # what messages call a row (`file:line`), and its columns


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
    if kind and kind not in benchmarks.NAMES:
        raise UserError(f"--task={kind:.40} is not a task; give one of {', '.join(benchmarks.NAMES)}, or leave it out.")
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


def _number(columns: Mapping[str, Any]) -> int:
    """A number that shuffles the choices of a question, the same in any order of rows."""
    question = columns.get("question", columns.get("Question"))
    return int(identity.question_id(question)[:8], 16) if isinstance(question, str) else 0


def summary(rates: Sequence[Rate | None]) -> str:
    """Returns one line about rates: how many rows were solved in all tries, in some, in none."""
    known = [rate for rate in rates if rate is not None]
    always = sum(rate.right == rate.tries for rate in known)
    never = sum(rate.right == 0 for rate in known)
    mean = 100 * sum(rate.right / rate.tries for rate in known) / max(len(known), 1)
    return (
        f"{len(known):,} rows: the student is right in {mean:.1f} % of the tries on average; in all tries for"
        f" {always:,} rows, in none for {never:,}, in some for {len(known) - always - never:,}"
    )


def notes(rates: Sequence[Rate | None]) -> list[str]:
    """Returns what is unusual about rates: verdicts without a result, or a student that solves everything."""
    known = [rate for rate in rates if rate is not None]
    found = []
    if undecided := sum(rate.undecided for rate in known):
        tries = sum(rate.tries for rate in known)
        found.append(f"{undecided:,} of {tries:,} verdicts are undecided, as their comparison did not end; not right.")
    if known and all(rate.right == rate.tries for rate in known):
        found.append(
            f"the student solves all {len(known):,} rows in every try, so that 0 rows remain for a rule that drops what"
            " it solves; take harder questions or a weaker student."
        )
    return found
