"""Loads training rows: a question, a thinking trace, an answer and earlier turns, with the place they came from.

Files are read directly: parsing a thousand rows takes less time than preparing a copy would. Only `s1k` and
`s1k_1_1`, which come from the hub, go through the prepared array_record copy (`s1jax.data.s1k_builder`), so that a
second run needs no network. A folder prepared by that builder can be given as a source, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from s1jax.data import shapes
from s1jax.errors import MissingPackageError, UserError
from s1jax.io import readers
from s1jax.io.readers import Record
from s1jax.text.messages import Message

_WANTED = f"a {readers.READABLE} file, a folder of such files, s1k, s1k_1_1 or countdown"


@dataclasses.dataclass(frozen=True)
class Row:
    """One example as text.

    Attributes:
      question: what is asked.
      trace: the thinking.
      answer: the text after the thinking.
      name: where it came from, for messages: file:line, lines counted from 1.
      system: system prompt; empty if the row has none, and the chat format decides.
      history: the messages of earlier turns, between the system prompt and the question.
      earlier: the examples that earlier turns of the same conversation make, see `load_rows`.
      source: index of its source in a mix (`s1jax.data.mix`).
    """

    question: str
    trace: str
    answer: str
    name: str
    system: str = ""
    history: tuple[Message, ...] = ()
    earlier: tuple[Row, ...] = ()
    source: int = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation up to the question; an empty system prompt leaves the chat format its own."""
        return [Message("system", self.system), *self.history, Message("user", self.question)]


@contextlib.contextmanager
def named(row: Row) -> Iterator[None]:
    """Puts the row's name before the message of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{row.name}: {error}") from error


def load_rows(
    source: str,
    traces: str = "deepseek",
    num_rows: int = 0,
    notes: list[str] | None = None,
    splits: Sequence[str] = readers.TRAINING,
    loss_on: shapes.LossOn = "last",
) -> list[Row]:
    """Loads rows.

    Args:
      source: `s1k` or `s1k_1_1` (from the hub, once), or a file or folder that `s1jax.io.readers` reads; of a folder
        the train split is taken.
      traces: `gemini` or `deepseek`; whose thinking is used if a row has several.
      num_rows: number of rows from the front; 0 takes all.
      notes: gets sentences about the files that are read and left out, and about the columns that are used.
      splits: of a folder, the first that it has is read.
      loss_on: `last` makes a row of the last turn of a conversation. `all` also makes one of each turn before it, in
        the row's `earlier`.

    Returns:
      the rows in the order of the source (files by path).

    Raises:
      UserError: if the source is missing or empty, a row is broken (named by file and line) or there are fewer than
        `num_rows`.
    """
    rows, tally = [], shapes.Tally()
    for name, record in itertools.islice(records(source, notes, splits), num_rows or None):
        found = shapes.examples(record, traces, name, loss_on)
        tally.add(found[-1], record, len(found))
        *earlier, row = (_row(each, name) for each in found)
        named_ = (dataclasses.replace(one, name=f"{name} (turn {i})") for i, one in enumerate(earlier, start=1))
        rows.append(dataclasses.replace(row, earlier=tuple(named_)))
    if len(rows) < max(num_rows, 1):
        raise UserError(
            f"{source} has {len(rows) or 'no'} rows, data.num_rows asks for {num_rows or 'all'}; give a source with"
            f" more{', or a smaller data.num_rows (0: all)' if rows else ''}."
        )
    if notes is not None:
        notes += [f"{source}: {tally}.", *tally.turns(source, loss_on)]
    return rows


def flat(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, each after those of the earlier turns of its conversation."""
    together = ((row, each) for row in rows for each in (*row.earlier, row))
    return [dataclasses.replace(each, earlier=(), source=row.source) for row, each in together]


def row_of(record: Record, traces: str, name: str) -> Row:
    """Takes question, trace, answer and system turn out of one record of one turn, whatever its shape.

    Raises:
      UserError: if a column is missing, not text, empty or too long; the message starts with `name`.
    """
    return _row(shapes.parts(record, traces, name), name)


def _row(found: shapes.Parts, name: str) -> Row:
    return Row(found.question, found.trace, found.answer, name, found.system, found.history)


def records(
    source: str | pathlib.Path, notes: list[str] | None = None, splits: Sequence[str] = readers.TRAINING
) -> Iterator[tuple[str, Record]]:
    """Yields (name, columns) of every record of a source, see `load_rows`; columns are not checked.

    Args:
      source: a file or folder, see `s1jax.io.readers`.
      notes: gets a sentence about files that are left out.
      splits: of a folder, the first that it has is read.

    Raises:
      UserError: if the source is missing, holds no file of rows, or a file does not parse.
    """
    path = pathlib.Path(source)
    if source in ("s1k", "s1k_1_1"):
        path = _builder_module(str(source)).prepare(str(source))
    elif not path.exists():
        raise UserError(f"data.source {source} does not exist; give {_WANTED}.")
    yield from readers.read(path, splits, notes)


def _builder_module(source: str) -> Any:
    """Imports the builder. It needs tensorflow-datasets, which is not needed to read plain files."""
    try:
        from s1jax.data import s1k_builder
    except ImportError:
        raise MissingPackageError(f"data.source {source}", "tensorflow-datasets", "data") from None
    return s1k_builder
