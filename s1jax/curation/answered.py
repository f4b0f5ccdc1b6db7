"""Pass rates from the answers of an endpoint, as the journal of `s1jax distil` keeps them."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s1jax.curation import difficulty
from s1jax.curation.graded import Graded, graded
from s1jax.curation.measurement import Columns, Named, Note
from s1jax.curation.pass_rate import Problem, Rate
from s1jax.data import identity
from s1jax.errors import UserError

# Answers that were cut or refused are tries that were not right; a request that failed is not a try.
_WRONG = ("cut", "refused")


@dataclasses.dataclass(frozen=True)
class TriesOf:
    """Measures `pass_rate` and `pass_tries` of a student at an endpoint.

    Attributes:
      lines: of the journal of its distil run, see `rates`.
      where: what messages call the journal.
      task: name of the task whose grading the rows get; empty: as mathematics.
    """

    lines: Iterable[Mapping[str, Any]]
    where: str
    task: str = ""

    def __call__(self, rows: Sequence[Named], out: pathlib.Path, note: Note) -> Columns:
        """See `s1jax.curation.measurement.Measurement`."""
        problems = graded(rows, self.task)
        found, notes = rates(problems, self.lines, self.where)
        for sentence in (*problems.notes(), *notes, *difficulty.notes(found)):
            note(sentence)
        return difficulty.columns(found)


def rates(pool: Graded, lines: Iterable[Mapping[str, Any]], where: str) -> tuple[list[Rate | None], list[str]]:
    """Returns the rate of each row, and sentences on rows without one.

    Args:
      pool: rows as problems.
      lines: of the journal, the best one of each request: `id`, `answer` (its number), `state`, `content`, `endpoint`,
        `model`.
      where: what messages call the journal.

    Raises:
      UserError: the answers are those of several students or settings, or no row has one.
    """
    wanted = {_id(problem) for problem in pool.problems if problem is not None}
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    students: set[tuple[str, str]] = set()
    failed: collections.Counter[str] = collections.Counter()
    for line in lines:
        if line["id"] not in wanted:
            continue
        if line["state"] == "failed":
            failed[line["id"]] += 1
            continue
        students.add((line["endpoint"], line["model"]))
        if line["answer"] in found.setdefault(line["id"], {}) or len(students) > 1:
            names = ", ".join(sorted({model for _, model in students}))
            raise UserError(
                f"{where} has answers of several students or settings ({names}); give a folder with those of one."
            )
        found[line["id"]][line["answer"]] = line
    if not found:
        raise UserError(f"{where} answers none of the {len(pool.problems):,} rows; give the folder of their answers.")
    known = [
        None if problem is None else _rate(pool, problem, found.get(_id(problem), {})) for problem in pool.problems
    ]
    missing = sum(rate is None and problem is not None for rate, problem in zip(known, pool.problems, strict=True))
    notes = []
    if missing:
        notes.append(f"{missing:,} of {len(known):,} rows have no answer in {where}, and get no pass rate.")
    if failed:
        notes.append(f"{failed.total():,} requests of {where} have failed; they do not count as tries.")
    return known, notes


def _id(problem: Problem) -> str:
    return identity.question_id(problem.row["question"])


def _rate(pool: Graded, problem: Problem, tries: Mapping[int, Mapping[str, Any]]) -> Rate | None:
    if not tries:
        return None
    verdicts = [
        False if line["state"] in _WRONG else pool.task.grade(line["content"], problem.row) for line in tries.values()
    ]
    return Rate(verdicts.count(True), len(verdicts), verdicts.count(None))
