"""Steps of a curation: a rule with what it reads, so that stages can be run, skipped and keyed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.curation.row import Drop, Row

RowRule = Callable[[Row], Drop | None]
SetRule = Callable[[Sequence[Row]], tuple[Sequence[Row], Mapping[str, Drop]]]

# The command that measures a column, for the sentence about a pool that lacks it.
MEASURED_BY = {
    "pass_rate": "s1jax measure --student=CKPT measures it",
    "domain": "s1jax measure --clusters=K finds it, and --labels=LIST asks a teacher",
    "trace_tokens": "--tokenizer=CHECKPOINT counts it",
    "correct": "s1jax measure --grade compares the answers with `solution`",
    "source_type": "give the name of the source a row was taken from",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One rule of a preset.

    Attributes:
      name: of the rule, the stage and the line of the report.
      row: the rule, if it is a function of one row.
      rows: the rule, if it is a function of the set of rows.
      by: of a rule of the set that looks at the rows of one question, or of another key, alone: that key.
      needs: columns without which the rule cannot run.
      wants: columns that it reads where they are there.
      whole: whether it reads trace, answer or long columns, which are not kept in memory.
      of_a_teacher: whether it depends on what a teacher wrote.
      settings: all that its result depends on beside the rows; JSON values.
    """

    name: str
    row: RowRule | None = None
    rows: SetRule | None = None
    by: Callable[[Row], str] | None = None
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    whole: bool = False
    of_a_teacher: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.row is None) == (self.rows is None):
            raise ValueError(f"step {self.name} has either a rule of one row or one of the set")
