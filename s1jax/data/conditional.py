"""Adds to each question how long to think: token-, step- and class-conditional control.

Token and step limits are powers of two, rounded up: a trace of 1,025 to 2,048 tokens gets "up to 2048 tokens". Blank
lines separate the steps of a trace (single newlines if it has no blank line). Each step begins with the number of steps
that are left, so every trace ends with step 1. Source: "s1: Simple test-time scaling" (arXiv 2501.19393),
appendix E.1. The paper prompts for short and long thinking without training for it; here a trace is short if it is
no longer than the median of all rows.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Sequence

from s1jax.data.s1k import Row, named
from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text.chat import ChatFormat
from s1jax.text.tokenizer import Tokenizer


def make_rows(rows: Sequence[Row], control: str, tokenizer: Tokenizer, fmt: ChatFormat) -> list[Row]:
    """Returns the rows with an instruction appended to each question and, for `step`, a header before each step.

    Args:
      rows: without instructions.
      control: `token`, `step` or `class`.
      tokenizer: counts thinking tokens, delimiters left out.
      fmt: has the instructions.

    Raises:
      UserError: if the tokenizer cannot write an instruction or encode a trace (names the row), or all traces are
        equally long for `class`.
    """
    counts = []
    for row in rows if control != "step" else ():
        with named(row):
            counts.append(chat.thinking_tokens(tokenizer, fmt, row.trace))
    median = statistics.median_low(counts) if counts else 0
    if control == "class" and max(counts) == median:
        raise UserError(f"data.control class: no trace is longer than the median of {median} tokens; give other rows.")
    made = []
    for i, row in enumerate(rows):
        trace = row.trace
        if control == "step":
            trace, steps = count_down(fmt, row.trace)
            bound: int | str = bucket(steps)
        elif control == "token":
            bound = bucket(counts[i])
        else:
            bound = "short" if counts[i] <= median else "long"
        with named(row):
            question = chat.instruct(tokenizer, fmt, row.question, control, bound)
        made.append(dataclasses.replace(row, question=question, trace=trace))
    return made


def bucket(count: int) -> int:
    """Returns the smallest power of two that is at least `count`, a positive number."""
    return 1 << (count - 1).bit_length()


def count_down(fmt: ChatFormat, trace: str) -> tuple[str, int]:
    """Returns a trace with a header before each step, and the number of its steps."""
    trace = trace.strip()
    blank = re.split(r"\n[ \t]*\n\s*", trace)
    steps = blank if len(blank) > 1 else re.split(r"\n\s*", trace)
    return ("\n\n" if len(blank) > 1 else "\n").join(chat.headed(fmt, steps)), len(steps)
