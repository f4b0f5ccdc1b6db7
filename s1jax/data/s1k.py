"""Rows in the form of s1K: a question, a thinking trace and an answer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One example as text.

    Attributes:
      question: what is asked.
      trace: the thinking.
      answer: what stands after the thinking.
      name: where it came from, for messages: file:line.
    """

    question: str
    trace: str
    answer: str
    name: str
