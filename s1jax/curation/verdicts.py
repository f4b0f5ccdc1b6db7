"""Grades the teacher's answers of rows: the column `correct`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.curation.measurement import Columns, Named, Note
from s1jax.data import shapes
from s1jax.errors import UserError
from s1jax.tasks import benchmarks

_JUDGED = ("correct", "is_correct")  # columns of an earlier verdict, which shapes would refuse a row for


@dataclasses.dataclass(frozen=True)
class Correct:
    """Measures `correct`: whether the teacher's answer in a row is right.

    Attributes:
      task: name of the task whose grading the rows get; empty: as mathematics.
      traces: see `grade`.
    """

    task: str = ""
    traces: str = "deepseek"

    def __call__(self, rows: Sequence[Named], out: pathlib.Path, note: Note) -> Columns:
        """See `s1jax.curation.measurement.Measurement`."""
        found, notes = grade(rows, self.task, self.traces)
        for sentence in notes:
            note(sentence)
        summary = f"{found.count(True):,} answers are right, {found.count(False):,} are wrong"
        return Columns([{"correct": verdict} for verdict in found], summary)


def grade(rows: Sequence[Named], kind: str, traces: str = "deepseek") -> tuple[list[bool | None], list[str]]:
    """Grades the answer of each row against its solution.

    The solution is in `answer` or `solution`, as for a pass rate. A column that holds the teacher's own answer is not
    one.

    Args:
      rows: with answers, in any shape that training reads.
      kind: name of the task whose grading they get; empty: as mathematics.
      traces: `gemini` or `deepseek`; whose answer is graded if a row of s1K-1.1 has both.

    Returns:
      for each row whether its answer is right, None where that is not known; and a sentence on those.

    Raises:
      UserError: no row can be graded.
    """
    task = benchmarks.graded(kind, "", [])
    verdicts: list[bool | None] = []
    reasons: list[str] = []
    for name, record in rows:
        try:
            verdict = task.grade(*_answer_and_problem(record, kind, traces, name))
        except UserError as error:
            verdict = None
            reasons.append(str(error))
        else:
            if verdict is None:
                reasons.append(f"{name}: the comparison of its answer with the solution did not end.")
        verdicts.append(verdict)
    if len(reasons) == len(rows):
        raise UserError(f"none of the {len(rows):,} answers can be graded; the first: {(reasons or ['no rows.'])[0]}")
    notes = [f"{len(reasons):,} of {len(rows):,} answers get no verdict; the first: {reasons[0]}"] if reasons else []
    return verdicts, notes


def _answer_and_problem(record: Mapping[str, Any], kind: str, traces: str, name: str) -> tuple[str, dict[str, Any]]:
    """Returns the teacher's answer of a row, and the problem that it answers."""
    columns = {key: value for key, value in record.items() if key not in _JUDGED}
    found = shapes.parts(columns, traces, name)
    rest = {key: value for key, value in columns.items() if key not in found.used}
    return found.answer, benchmarks.problem(kind, rest | {"question": found.question}, name, 0)
