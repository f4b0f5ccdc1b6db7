"""Drops rows whose answer was graded as wrong."""

from __future__ import annotations

import dataclasses

from s1jax.curation.row import Drop, Row


@dataclasses.dataclass(frozen=True)
class Right:
    """The rule: a pure function of a row, for answers that can be checked. It needs the column `correct`.

    No preset has it: no filter by correctness was better than keeping all (OpenThoughts3, arXiv 2506.04178).
    """

    name = "right"

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; the evidence is the answer."""
        if row.columns["correct"]:
            return None
        return Drop(self.name, "the answer is wrong", " ".join(row.answer.split())[:80] or "no answer")
