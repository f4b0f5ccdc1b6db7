"""A row on its way through curation, and why one was dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Row:
    """One question, with a trace where a teacher has written one.

    Attributes:
      id: `s1jax.data.identity.question_id` of the question, with `#K` for the K-th answer where a question has several.
      question: what is asked.
      trace: the thinking; empty where the row is a question only.
      answer: the text after the thinking; empty where the row is a question only.
      name: where it came from, for messages: file:line, lines counted from 1.
      columns: all columns of the row as read, and those that stages have measured.
    """

    id: str
    question: str
    trace: str
    answer: str
    name: str
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a row was dropped.

    Attributes:
      rule: name of the rule, such as `decontamination`.
      reason: one phrase for a reader, the same for all rows that it is true of.
      evidence: what the rule found in this row: the n-gram, the other row's id, the value.
    """

    rule: str
    reason: str
    evidence: str


class Rule(Protocol):
    """A pure function of one row."""

    name: str

    def __call__(self, row: Row) -> Drop | None:
        """Returns why the row is dropped; None keeps it."""
        ...
