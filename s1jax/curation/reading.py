"""Reads the pool of a curation: rows of any shape that training reads, and questions without a trace."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s1jax.curation import measured, tokens
from s1jax.curation.row import Drop, Row
from s1jax.data import identity, s1k, shapes
from s1jax.errors import UserError
from s1jax.io import readers

_PUBLISHED = ("s1k", "s1k_1_1")
_QUESTIONS = ("question", "problem", "prompt")
# Columns that hold what a teacher wrote. A row with none of them is a question only.
WRITTEN = (
    "thinking_trajectories", "gemini_thinking_trajectory", "deepseek_thinking_trajectory", "generations", "completion",
    "messages", "conversations", "deepseek_reasoning", "reasoning_content", "reasoning", "thinking",
)  # fmt: skip
_ENDS = ("</think>", "<|end_of_thought|>")
# Not a judgement for training to refuse, but a measurement for rules to read.
_JUDGED = ("correct", "is_correct")

RULE = "shape"
HIDDEN = measured.HIDDEN


def source(name: str) -> pathlib.Path | None:
    """Returns the path of a source; None for one that is read through the hub.

    Raises:
      UserError: it is neither.
    """
    if name in _PUBLISHED:
        return None
    path = pathlib.Path(name)
    if not path.exists():
        raise UserError(
            f"--rows={name} does not exist; give {readers.READABLE} files, folders of them, or {', '.join(_PUBLISHED)}."
        )
    return path


def rows(
    sources: Sequence[str], traces: str = "deepseek", notes: list[str] | None = None
) -> Iterator[tuple[Row, Drop | None]]:
    """Yields the rows of some sources, one source after the other.

    Args:
      sources: files and folders, or names of published sets.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      notes: gets sentences about files that are left out and columns that are used under another name.

    Yields:
      a row whose id is that of its question, and why it cannot be used (rule `shape`), or None.

    Raises:
      UserError: a source does not exist, a file does not parse, a row has no question, or a measured column has a
        value that cannot be one; names file and row.
    """
    aliases: collections.Counter[tuple[str, str]] = collections.Counter()
    for name in sources:
        path = source(name)
        for place, record in s1k.records(name, notes) if path is None else readers.read(path, notes=notes):
            yield row(record, traces, place, aliases)
    if notes is not None:
        notes += [f"column {theirs} is read as {ours} ({count:,} rows)." for (theirs, ours), count in aliases.items()]


def row(
    record: Mapping[str, Any], traces: str, place: str, aliases: collections.Counter[tuple[str, str]] | None = None
) -> tuple[Row, Drop | None]:
    """Returns the row of one record, and why it cannot be used, see `rows`."""
    columns = measured.columns(record, place, aliases)
    shaped = {name: value for name, value in record.items() if name not in _JUDGED}
    question = _question(shaped)
    if question is not None and not _is_answered(shaped):
        drop = None
        try:  # the same refusals as of a row with an answer: images, the rest of a question in another column
            shapes.parts(
                {**shaped, "thinking_trajectories": ["-"], "attempt": "-", "question": question}, traces, place
            )
        except UserError as error:
            drop = Drop(RULE, "cannot be used", _without(place, error))
        return Row(identity.question_id(question), question, "", "", place, columns), drop
    try:
        found = shapes.parts(shaped, traces, place)
    except UserError as error:
        if question is None:
            raise
        found_id = identity.question_id(question)
        return Row(found_id, question, "", "", place, columns), Drop(RULE, "cannot be used", _without(place, error))
    if found.system:
        columns = {**columns, "system": found.system}
    return Row(identity.question_id(found.question), found.question, found.trace, found.answer, place, columns), None


def _without(place: str, error: UserError) -> str:
    return str(error).removeprefix(place).lstrip(": ")


def _question(record: Mapping[str, Any]) -> str | None:
    for column in _QUESTIONS:
        if isinstance(record.get(column), str) and record[column].strip():
            return str(record[column])
    for column in ("messages", "conversations", "prompt"):
        for message in record[column] if isinstance(record.get(column), list) else ():
            if isinstance(message, dict) and message.get("role", message.get("from")) in ("user", "human"):
                said = message.get("content", message.get("value"))
                if isinstance(said, str) and said.strip():
                    return said
    return None


def _is_answered(record: Mapping[str, Any]) -> bool:
    if any(record.get(column) not in (None, "", []) for column in WRITTEN):
        return True
    return any(isinstance(value, str) and any(end in value for end in _ENDS) for value in record.values())


def marked(one: Row, drop: Drop | None, tokenizer: str = "") -> Row:
    """Adds the columns that stages need and no output has, see `HIDDEN`; with a tokenizer `trace_tokens` as well.

    `_content` is equal of rows with the same question, trace and answer, `_columns` of those with the same columns;
    `_drop` is why a row cannot be used; `trace_characters` is the length of the trace, if there is one.
    """
    text = "\x1f".join((one.id, one.trace, one.answer))
    columns = json.dumps(dict(one.columns), sort_keys=True, default=str)
    more: dict[str, Any] = {"_content": _digest(text), "_columns": _digest(columns)}
    if one.trace:
        more["trace_characters"] = len(one.trace)
    if one.trace and tokenizer and "trace_tokens" not in one.columns:
        more["trace_tokens"] = tokens.count(tokenizer, one.trace)
    if drop is not None:
        more["_drop"] = dataclasses.asdict(drop)
    return dataclasses.replace(one, columns={**one.columns, **more})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def numbered(found: Sequence[Row]) -> list[tuple[Row, Drop | None]]:
    """Gives every row an id of its own, and says which rows repeat another one or cannot be used.

    Args:
      found: rows of `marked`, whose id is that of their question. Rows of a question must be together in one call.

    Returns:
      the rows in their order. Their ids are the question's, or `ID#K` where a question has several answers. K is that
      of the row's own column `id` where such ids are there and differ, else the place of the content among those of the
      question.
    """
    by_question: dict[str, dict[str, list[int]]] = {}
    for i, one in enumerate(found):
        by_question.setdefault(one.id, {}).setdefault(one.columns["_content"], []).append(i)
    result: list[tuple[Row, Drop | None]] = [(one, None) for one in found]
    for question, answers in by_question.items():
        own = {digest: min(_own_id(question, found[i]) for i in same) for digest, same in answers.items()}
        given = list(own.values())
        keeps = all(given) and len(set(given)) == len(given)
        for k, digest in enumerate(sorted(answers)):
            same = answers[digest]
            kept = found[min(same, key=lambda i: (found[i].columns["_columns"], found[i].name))]
            row_id = own[digest] if keeps else f"{question}#{k}" if len(answers) > 1 else question
            for i in same:
                bad = found[i].columns.get("_drop")
                drop = Drop(**bad) if bad else None
                if found[i] is not kept:
                    drop = Drop("copies", "repeats another row", kept.name)
                result[i] = dataclasses.replace(found[i], id=row_id), drop
    return result


def without_trace(one: Row, preset: str) -> Drop | None:
    """Drops a question that nothing was written for, where rows to train on are chosen."""
    if one.columns.get("trace_characters"):
        return None
    return Drop(RULE, "has no trace", f"--preset={preset} chooses rows to train on")


def _own_id(question: str, one: Row) -> str:
    own = one.columns.get("id")
    return own if isinstance(own, str) and own.startswith(f"{question}#") and own[33:].isdigit() else ""
