"""Rows in the form of s1K: a question, a thinking trace and an answer.

Columns, as published: `question`; `thinking_trajectories` (a list of strings, or one string) and `attempt` (s1K), or
`gemini_thinking_trajectory`, `gemini_attempt`, `deepseek_thinking_trajectory` and `deepseek_attempt` (s1K-1.1). Other
columns are ignored.

JSONL and parquet are read as they are: parsing a thousand rows takes less time than preparing a copy would. Only `s1k`
and `s1k_1_1`, which come from the hub, go through the prepared array_record copy (`s1jax.data.s1k_builder`), so that a
second run needs no network. A folder prepared by that builder can be given as a source, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from s1jax.config import InputError

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One example as text.

    Attributes:
      question: what is asked.
      trace: the thinking.
      answer: what stands after the thinking.
      name: where it came from, for messages: file:line, lines counted from 1.
    """

    question: str
    trace: str
    answer: str
    name: str


@contextlib.contextmanager
def named(row: Row) -> Iterator[None]:
    """Puts the row's name before what goes wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row.name}: {error}") from error


def load_rows(source: str, traces: str = "deepseek", num_rows: int = 0) -> list[Row]:
    """Loads rows.

    Args:
      source: `s1k` or `s1k_1_1` (from the hub, once), a JSONL or parquet file, a folder that holds such files at any
        depth (names that start with `test` or `validation` are left out), or a folder prepared by `s1k_builder`.
      traces: `gemini` or `deepseek`; whose thinking is taken where a row has several.
      num_rows: this many from the front; 0 takes all.

    Returns:
      the rows in the order of the source (files by path).

    Raises:
      InputError: if the source is missing or empty, a row is broken (named by file and line) or there are fewer than
        `num_rows`.
    """
    found = itertools.islice(records(source), num_rows or None)
    rows = [row_of(record, traces, name) for name, record in found]
    if len(rows) < max(num_rows, 1):
        raise InputError(
            f"{source} has {len(rows) or 'no'} rows, data.num_rows asks for {num_rows or 'all'}; give a source with"
            f" more{', or a smaller data.num_rows' if rows else ''}."
        )
    return rows


def row_of(record: Record, traces: str, name: str) -> Row:
    """Takes question, trace and answer out of one record.

    `thinking_trajectories` are joined by newlines.

    Raises:
      InputError: if a column is missing, no text or empty; the message starts with `name`.
    """
    own = f"{traces}_thinking_trajectory"
    column, answer = (own, f"{traces}_attempt") if own in record else ("thinking_trajectories", "attempt")
    if column not in record:
        raise InputError(
            f"{name} has neither column thinking_trajectories nor {own}, but {', '.join(sorted(record)) or 'none'};"
            " rename the column that holds the thinking, or choose other data.traces."
        )
    return Row(_text(record, "question", name), _text(record, column, name), _text(record, answer, name), name)


def _text(record: Record, column: str, name: str) -> str:
    if column not in record:
        raise InputError(f"{name} has no column {column}, but {', '.join(sorted(record))}; add it.")
    value = record[column]
    if column == "thinking_trajectories" and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise InputError(f"{name}: column {column} is {type(value).__name__}, not text; write it as a string.")
    if not value.strip():
        raise InputError(f"{name}: column {column} is empty; fill it or remove the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: column {column} is no valid Unicode ({error.reason}); repair it.") from None
    return value


def records(source: str | pathlib.Path) -> Iterator[tuple[str, Record]]:
    """Yields (name, columns) of every record of a source, see `load_rows`; columns are not checked.

    Raises:
      InputError: if the source is missing, holds no file of rows, or a file does not parse.
    """
    if source in ("s1k", "s1k_1_1"):
        yield from _prepared(_builder_module(str(source)).prepare(str(source)))
        return
    path = pathlib.Path(source)
    if path.is_dir() and (path / "dataset_info.json").exists():
        yield from _prepared(path)
        return
    for file in _files(path):
        yield from _parquet(file) if file.suffix == ".parquet" else read_jsonl(file)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of rows under `path`, or `path` itself, in order."""
    wanted = "give a .jsonl or .parquet file, a folder of such files, s1k, s1k_1_1 or countdown"
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise InputError(f"data.source {path} is neither JSONL nor parquet; {wanted}.")
        return [path]
    if not path.is_dir():
        raise InputError(f"data.source {path} does not exist; {wanted}.")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in (".jsonl", ".parquet")
        and not file.name.startswith(("test", "validation", "."))
        and not file.is_dir()
    )
    for file in files:
        if not file.exists():
            raise InputError(f"{file} is a link to a file that does not exist; repair or remove it.")
    if not files:
        raise InputError(f"data.source {path} is a folder without .jsonl or .parquet files; {wanted}.")
    return files


def read_jsonl(file: pathlib.Path) -> Iterator[tuple[str, Record]]:
    """Yields (file:line, columns) of a JSONL file, whatever its suffix; blank lines are skipped."""
    with file.open("rb") as lines:  # bytes: only a newline ends a line, and a wrong encoding is told by its line
        for number, line in enumerate(lines, start=1):
            name = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name} is not JSON ({error}); repair or remove the line.") from None
            if not isinstance(record, dict):
                raise InputError(f"{name} is a JSON {type(record).__name__}, not an object of columns; repair it.")
            yield name, record


def _parquet(file: pathlib.Path) -> Iterator[tuple[str, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", record
    # Text that is not UTF-8 is a ValueError, an unknown time zone a KeyError, a date of no calendar an OverflowError.
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{file} is no parquet file that can be read ({error}); write it again.") from None


def _prepared(folder: pathlib.Path) -> Iterator[tuple[str, Record]]:
    return _builder_module(str(folder)).read(folder)


def _builder_module(source: str) -> Any:
    """Imports the builder; it needs tensorflow-datasets, which a machine that reads plain files may lack."""
    try:
        from s1jax.data import s1k_builder
    except ImportError as error:
        raise InputError(
            f"data.source {source} needs tensorflow-datasets and array_record ({error}); install them, or give a"
            " folder of JSONL or parquet files."
        ) from None
    return s1k_builder
