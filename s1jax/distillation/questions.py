"""Reads the questions that a teacher is asked, from any file of rows."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from s1jax.data.identity import question_id
from s1jax.distillation.request import Request
from s1jax.distillation.settings import DistilSettings
from s1jax.engine import fields
from s1jax.errors import UserError
from s1jax.io import hub, paths, readers

Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]]

_COLUMNS = ("question", "problem", "prompt")
_LISTS = ("messages", "conversations")
_SYSTEM = ("system", "system_prompt")
_BESIDE = ("input", "context", "history")  # columns with the rest of a question, as in Alpaca
_UNUSABLE = ("tools", "functions", "images", "image", "audio", "videos")
_USERS = {"system": "system", "developer": "system", "user": "user", "human": "user"}
_HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_PATTERNS = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv", "*.arrow", "*.jsonl.gz", "*.json.gz", "README.md")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
      id: `s1jax.data.identity.question_id` of the text.
      text: as the row has it.
      system: system prompt of the row; empty: it has none.
    """

    id: str
    text: str
    system: str

    def request(self, settings: DistilSettings, answer: int) -> Request:
        """Returns the request for one of its answers, counted from 0."""
        messages = [{"role": "user", "content": settings.template.replace("{question}", self.text)}]
        if system := self.system or settings.system:
            messages.insert(0, {"role": "system", "content": system})
        return Request(self.id, tuple(messages), settings.sampling(answer), answer)


def read(source: Source, num: int = 0, notes: list[str] | None = None) -> list[Question]:
    """Reads questions; one that is there several times is returned once.

    Args:
      source: see `records`.
      num: rows from the front; 0: all.
      notes: gets sentences about files that are left out, and about what is not asked.

    Raises:
      UserError: there is nothing to read, or a row has no question; names file and row.
    """
    notes = [] if notes is None else notes
    found: dict[str, Question] = {}
    twice = answered = others = 0
    columns: dict[str, None] = {}
    for count, (name, record) in enumerate(records(source, notes), start=1):
        question, has_answer = parse(record, name)
        first = found.setdefault(question.id, question)
        twice += first is not question
        others += first.system != question.system
        answered += has_answer
        columns |= dict.fromkeys(str(column) for column, value in record.items() if value is not None)
        if count == num:
            break
    if not found:
        raise UserError(f"{source!s:.200} holds no rows; give at least one question.")
    if num and count < num:
        raise UserError(f"{source!s:.200} has {count:,} rows, fewer than the {num:,} of num_questions; give fewer.")
    if twice:
        more = f"; {others:,} of them with another system prompt, which is not used" if others else ""
        notes.append(f"{twice:,} of {count:,} rows repeat the question of an earlier row, and are asked once{more}.")
    if answered:
        notes.append(f"{answered:,} rows have an assistant's turn already, which the teacher does not see.")
    if unread := [column for column in fields.settings_in(columns) if column not in _SYSTEM]:
        notes.append(
            f"{', '.join(unread)} of the rows: sampling settings of a row are not sent, only copied; the flags say how"
            " the teacher samples."
        )
    return list(found.values())


def records(source: Source, notes: list[str] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (name in messages, columns) of all rows.

    Args:
      source: a file or folder that `s1jax.io.readers` reads (of a folder its train split), a dataset of the Hugging
        Face hub as OWNER/NAME or hub:OWNER/NAME@REVISION, or rows.
      notes: gets sentences about files that are read and left out.

    Raises:
      UserError: it cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        for number, record in enumerate(source, start=1):
            if not isinstance(record, Mapping):
                raise UserError(f"questions: row {number} is {record!r:.60}, not an object of columns.")
            yield f"row {number}", record
        return
    text = os.fspath(source)
    match = _HUB.fullmatch(text)
    if match and not os.path.exists(text) and (text.startswith("hub:") or not _is_file_name(text)):
        source = _download(match[1], match[2] or "", [] if notes is None else notes)
    else:
        paths.local(text, "questions")
    yield from readers.read(source, readers.TRAINING, notes)


def parse(record: Mapping[str, Any], name: str) -> tuple[Question, bool]:
    """Takes the question out of a row.

    Args:
      record: columns: `question`, `problem` or `prompt`, or one turn in `messages` or `conversations`; and maybe
        `system`. None counts as missing.
      name: what messages call the row.

    Returns:
      the question, and whether the row has an assistant's turn, which is not used.

    Raises:
      UserError: there is no question, or it is more than one text.
    """
    for column in _UNUSABLE:
        if record.get(column):
            raise UserError(
                f"{name}: column {column} is not empty and would not be sent; remove the column or the row."
            )
    column = next((column for column in (*_COLUMNS, *_LISTS) if record.get(column) is not None), "")
    if not column:
        has = ", ".join(sorted(map(str, record))) or "none"
        known = ", ".join((*_COLUMNS, *_LISTS))
        raise UserError(f"{name} has none of the columns {known}, but {has}; rename the one with the question.")
    value, system, answered = record[column], "", False
    if column in _LISTS and not isinstance(value, list):
        raise UserError(f"{name}: {column} is {value!r:.40}; it must be a list of messages, which CSV cannot hold.")
    if isinstance(value, list):
        value, system, answered = _turn(value, f"{name}: {column}")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name}: {column} is {value!r:.40}; it must be a text that is not empty.")
    for other in _BESIDE:
        beside = record.get(other)
        if beside and not (isinstance(beside, str) and (not beside.strip() or beside.strip() in value)):
            raise UserError(
                f"{name}: column {other} is not empty and not used, as the question is in {column}; write it into the"
                " question, or remove the column."
            )
    own = next((record[other] for other in _SYSTEM if record.get(other)), system)
    if not isinstance(own, str) or (system and own != system):
        raise UserError(f"{name} has two system prompts, or one that is not a text; keep one text.")
    for text, where in ((value, column), (own, "system")):
        readers.check_length(text, name, where)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which no request can hold
            raise UserError(f"{name}: {where} is not valid Unicode ({error.reason}); repair the row.") from None
    return Question(question_id(value), value, own), answered


def _turn(messages: list[Any], name: str) -> tuple[Any, str, bool]:
    """Returns text, system prompt and whether an answer follows, of a list of messages with one user's turn."""
    roles, texts = [], []
    for message in messages:
        if not isinstance(message, Mapping):
            raise UserError(f"{name} holds {message!r:.40}, not objects with role and content; repair it.")
        role = message.get("role", message.get("from"))
        roles.append(_USERS.get(role, "assistant") if isinstance(role, str) else "assistant")
        content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)  # typed parts, as OpenAI's clients write them
        texts.append(content)
    system = texts.pop(0) if roles[:1] == ["system"] else ""
    roles = roles[1:] if system or roles[:1] == ["system"] else roles
    if roles not in (["user"], ["user", "assistant"]):
        raise UserError(
            f"{name} holds {', '.join(roles) or 'nothing'}; one user's turn can be asked, with or without a system turn"
            " before it; divide or remove the row."
        )
    return texts[0], system or "", len(roles) == 2


def _is_file_name(text: str) -> bool:
    """Whether a text that could name a repository looks like a file instead."""
    suffixes = pathlib.PurePath(text).suffixes
    return any(suffix.lower() in {*readers.KINDS, ".gz"} for suffix in suffixes) or text.startswith((".", "/"))


def _download(repository: str, revision: str, notes: list[str]) -> pathlib.Path:
    try:
        folder, commit = hub.snapshot(repository, _PATTERNS, kind="dataset", revision=revision)
    except Exception as error:  # the library's own, requests', httpx's and OSError, by version
        raise UserError(
            f"questions: {repository} is neither a file here nor can it be downloaded from the hub"
            f" ({type(error).__name__}); correct the path, or download it elsewhere and give its folder."
        ) from error
    notes.append(f"the questions are {repository}{f' at revision {commit}' if commit else ''} of the hub.")
    return folder
