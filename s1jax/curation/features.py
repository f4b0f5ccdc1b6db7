"""Drops rows that lack a measured column."""

from __future__ import annotations

import dataclasses
import math

from s1jax.curation.row import Drop, Row


@dataclasses.dataclass(frozen=True)
class Features:
    """The rule: a pure function of a row.

    s1 drops rows without a verdict on a student, a verdict on the teacher, a domain or a length, and calls them API
    errors; most of them are coding problems without a reference solution. Here the column is named.

    Attributes:
      columns: that a row must have; None and NaN, which parquet and JSON have for nothing, do not count.
    """

    columns: tuple[str, ...]

    name = "features"

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; the evidence is the list of missing columns."""
        missing = [column for column in self.columns if _is_missing(row.columns.get(column))]
        return Drop(self.name, f"has no {missing[0]}", f"missing: {', '.join(missing)}") if missing else None


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
