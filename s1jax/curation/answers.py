"""Keeps one row a question where a question has several answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from s1jax.curation.row import Drop, Row
from s1jax.curation.steps import Step

NAME = "answers"


def shortest() -> Step:
    """Returns `best` as a step. It reads `correct` and `trace_tokens` where they are there, else the text's length."""
    return Step(
        NAME, rows=best, by=question_of, wants=("correct", "trace_tokens", "trace_characters"),
        of_a_teacher=True, settings={"keep": "shortest"}
    )  # fmt: skip


def first() -> Step:
    """Returns a step that keeps the row with the smallest id of a question."""
    return Step("duplicates", rows=smallest, by=question_of, settings={"keep": "smallest id"})


def smallest(rows: Sequence[Row]) -> tuple[Sequence[Row], Mapping[str, Drop]]:
    """Drops all rows of a question but the one with the smallest id."""
    kept: dict[str, str] = {}
    for row in rows:
        kept[question_of(row)] = min(kept.get(question_of(row), row.id), row.id)
    drops = {
        row.id: Drop("duplicates", "the same question as another row", kept[question_of(row)])
        for row in rows
        if row.id != kept[question_of(row)]
    }
    return [row for row in rows if row.id not in drops], drops


def question_of(row: Row) -> str:
    """Returns the id of a row's question: `ID` of `ID#K`."""
    return row.id.partition("#")[0]


def best(rows: Sequence[Row]) -> tuple[Sequence[Row], Mapping[str, Drop]]:
    """Drops all answers of a question but one.

    Right answers come before those that were not graded, and these before wrong ones: a wrong answer is kept where
    there is no other, because no filter by correctness was better than keeping all (OpenThoughts3, arXiv 2506.04178).
    Then the shorter trace comes first, then the smaller id.
    """
    kept: dict[str, Row] = {}
    for row in rows:
        other = kept.get(question_of(row))
        if other is None or _order(row) < _order(other):
            kept[question_of(row)] = row
    ids = {row.id for row in kept.values()}
    drops = {}
    for row in rows:
        if row.id not in ids:
            better = kept[question_of(row)]
            drops[row.id] = Drop(NAME, "another answer to the same question is right or shorter", better.id)
    return [row for row in rows if row.id in ids], drops


def length(row: Row) -> float:
    """Returns the length of a trace: in tokens where they were counted, else in characters."""
    return float(row.columns.get("trace_tokens", row.columns.get("trace_characters", len(row.trace))))


def _order(row: Row) -> tuple[int, float, str]:
    judged = row.columns.get("correct")
    return 1 if judged is None else 0 if judged else 2, length(row), row.id
