"""Writes `rows.jsonl`: the answers that ended by themselves, as training rows in the form of s1K."""

from __future__ import annotations

import collections
import datetime
import decimal
import math
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.distillation import questions as questions_lib
from s1jax.distillation.answers import Index
from s1jax.distillation.questions import Question
from s1jax.errors import UserError
from s1jax.io import files, lines

ROWS = "rows.jsonl"
# Columns of the question's own row that would be taken for the teacher's, or that judge another answer.
_TAKEN = (
    "id", "question", "thinking_trajectories", "attempt", "teacher", "finish_reason", "answer_number", "prompt_tokens",
    "completion_tokens", "reasoning_tokens", "dollars", "gemini_thinking_trajectory", "gemini_attempt",
    "deepseek_thinking_trajectory", "deepseek_attempt", "correct", "is_correct",
)  # fmt: skip


def write(
    folder: pathlib.Path,
    source: questions_lib.Source,
    questions: Sequence[Question],
    keys: Sequence[str],
    index: Index,
    *,
    answers: int,
    keep_without_thinking: bool,
    notes: list[str],
) -> int:
    """Writes the file whole, in the order of the questions; returns the number of rows.

    A column of the question's row that has the name of one of these is kept as `input_NAME`.

    Args:
      folder: gets `rows.jsonl`.
      source: of the questions, read again for their columns, so that these need not fit into memory.
      questions: that were asked.
      keys: of their requests, question by question, answer by answer.
      index: of the folder's answers.
      answers: of every question.
      keep_without_thinking: whether an answer without thinking becomes a row. Training refuses such a row.
      notes: gets sentences about answers and columns that are not as expected.

    Raises:
      UserError: a row of the source has a value that JSON has not.
    """
    places = {question.id: place for place, question in enumerate(questions)}
    counts: collections.Counter[str] = collections.Counter()
    written = 0
    files.remove_parts(folder)
    with files.replace(folder / ROWS) as file:
        for name, record in questions_lib.records(source):
            if not places:
                break
            place = places.pop(questions_lib.parse(record, name)[0].id, None)
            if place is None:
                continue
            mine = keys[place * answers : (place + 1) * answers]
            done = [key for key in mine if key in index.entries and index.entries[key].state == "done"]
            for line in index.texts(iter(done)):
                if not line["reasoning"].strip() and not keep_without_thinking:
                    counts["thinking"] += 1
                    continue
                row = _row(questions[place], line, record, name, answers, counts)
                file.write(lines.encoded(row))
                written += 1
    if counts["thinking"]:
        notes.append(f"{counts.pop('thinking'):,} answers hold no thinking and are not in {ROWS}.")
    if places:
        notes.append(f"{len(places):,} questions are not in the source any more, so {ROWS} lacks their answers.")
    for column, count in counts.items():
        notes.append(
            f"{count:,} rows of the questions have a column {column} of their own: {ROWS} has it as input_{column}."
        )
    return written


def _row(
    question: Question,
    line: Mapping[str, Any],
    record: Mapping[str, Any],
    name: str,
    answers: int,
    counts: collections.Counter[str],
) -> dict[str, Any]:
    usage = line["usage"]
    row: dict[str, Any] = {
        "id": f"{question.id}#{line['answer']}" if answers > 1 else question.id,
        "question": question.text,
        "thinking_trajectories": [line["reasoning"]],
        "attempt": line["content"],
        "teacher": line["model"],
        "finish_reason": line["finish_reason"],
        "answer_number": line["answer"],
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "reasoning_tokens": usage.get("reasoning_tokens"),
        "dollars": line["dollars"],
    }
    for column, value in record.items():
        target = str(column)
        if target == "id" and value == question.id:  # as `s1jax curate` wrote it
            continue
        if target in _TAKEN and not (target == "question" and value == question.text):
            counts[target] += line["answer"] == 0 or answers == 1
            while target in row or target in _TAKEN or (target != column and target in record):
                target = f"input_{target}"
        if target not in row:
            row[target] = _json(value, f"{name}: {column}")
    return row


def _json(value: Any, name: str) -> Any:
    """Returns a value of a file of rows as one of JSON: dates as text, numbers that JSON has not as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal | uuid.UUID):
        return value.isoformat() if hasattr(value, "isoformat") else str(value)
    if isinstance(value, Mapping):
        return {str(key): _json(inner, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner, name) for inner in value]
    raise UserError(f"{name} is {type(value).__name__}, which JSON has not; remove the column.")
