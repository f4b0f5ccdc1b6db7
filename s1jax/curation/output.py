"""Rows of rows.jsonl: in s1K's form for training, or questions for a teacher."""

from __future__ import annotations

import json
from typing import Any

from s1jax.curation import reading
from s1jax.curation.row import Row


def line(row: Row, traces: bool) -> bytes:
    """Returns a row as JSON: s1K's columns first, then all others but those that would be read in their place.

    Args:
      row: with all its columns.
      traces: whether trace and answer are written.
    """
    own: dict[str, Any] = {"id": row.id, "question": row.question}
    if traces:
        own |= {"thinking_trajectories": [row.trace], "attempt": row.answer}
    hidden = {*own, *reading.HIDDEN, *reading.WRITTEN, "attempt"}
    more: dict[str, Any] = {name: value for name, value in row.columns.items() if name not in hidden}
    for judged in ("correct", "is_correct"):  # training refuses rows that such a column calls wrong
        if traces and judged in more:
            more["answer_is_right"] = more.pop(judged)
    return json.dumps({**own, **more}, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
