"""Stages of a curation in parquet files that carry the hash of all that they depend on.

`00-rows.parquet` is the pool: a row for each row that was read. Each later file has the rows that one rule dropped. A
stage is read and not computed where its file carries the key it would get: the hash of the key of the stage before it,
the name of the rule and its settings. So after one setting was changed, only what follows is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s1jax import __version__
from s1jax.curation.row import Drop, Row
from s1jax.errors import MissingPackageError, UserError
from s1jax.io import files

if TYPE_CHECKING:
    import pyarrow as pa

# Of what the files hold and of how rules decide, within a release; part of every key.
VERSION = 2
_ROWS_AT_A_TIME = 1024
_BYTES_AT_A_TIME = 32 << 20  # of text in one row group; a trace may have a megabyte


def key(before: str, name: str, settings: Mapping[str, Any]) -> str:
    """Returns the key of a stage: 64 hex digits that depend on the stage before it, the rule and its settings."""
    text = json.dumps([__version__, VERSION, before, name, settings], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def pyarrow() -> Any:
    """Returns pyarrow with its parquet module.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise MissingPackageError("A curation, whose stages are parquet,", "pyarrow", "data") from None


def _open(file: pathlib.Path) -> Any:
    """Opens a parquet file without mapping it: another process may replace it meanwhile."""
    pyarrow()
    return importlib.import_module("pyarrow.parquet").ParquetFile(file, pre_buffer=False)


@contextlib.contextmanager
def _readable(file: pathlib.Path) -> Iterator[None]:
    """Names a stage whose end, which says what it is, is whole, but whose rows are damaged."""
    pa = pyarrow()
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        why = str(error)[:100]
        raise UserError(f"{file} is damaged ({why}); remove it and run the same command again.") from error


@contextlib.contextmanager
def _writer(file: pathlib.Path, schema: pa.Schema) -> Iterator[Any]:
    """Yields a parquet writer; the file appears when the block ends."""
    parquet = importlib.import_module("pyarrow.parquet")
    with files.replace(file) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield writer


class Stages:
    """The folder of the stages of one curation."""

    def __init__(self, folder: pathlib.Path):
        """Creates the folder if there is none."""
        pyarrow()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def file(self, number: int, name: str) -> pathlib.Path:
        """Returns the file of a stage."""
        return self.folder / f"{number:02d}-{name}.parquet"

    def facts(self, file: pathlib.Path, wanted: str) -> dict[str, Any] | None:
        """Returns what a stage's file says of itself; None if there is none, it is damaged or has another key."""
        pa = pyarrow()
        try:
            with _open(file) as parquet:
                text = (parquet.metadata.metadata or {}).get(b"s1jax")
            found = json.loads(text) if text else {}
        except (OSError, ValueError, pa.ArrowException):
            return None
        return found if isinstance(found, dict) and found.get("key") == wanted else None

    def forget(self, kept: Collection[pathlib.Path]) -> None:
        """Removes the stages of other presets: their numbers and names would mislead whoever looks into the folder."""
        for file in self.folder.glob("[0-9][0-9]-*.parquet"):
            if file not in kept:
                file.unlink()

    def write_rows(self, file: pathlib.Path, rows: Iterable[Row], facts: Mapping[str, Any]) -> int:
        """Writes the pool and returns the number of its rows; `facts` is read when all rows have been taken."""
        pa = pyarrow()
        names = ("id", "question", "trace", "answer", "name", "columns")
        schema = pa.schema([(name, pa.large_string()) for name in names])
        count = 0
        with _writer(file, schema) as writer:
            for batch in batches(rows):
                values = {name: [encoded(getattr(row, name)) for row in batch] for name in names[:-1]}
                values["columns"] = [encoded(json.dumps(dict(row.columns), default=str)) for row in batch]
                writer.write_table(pa.table(values, schema=schema))
                count += len(batch)
            writer.add_key_value_metadata({"s1jax": json.dumps(facts)})
        return count

    def read_rows(self, file: pathlib.Path, *, traces: bool, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yields the pool in the order of its file.

        Args:
          file: of `write_rows`.
          traces: whether traces and answers are read; otherwise they are empty.
          columns: those that rows get; None: all.
        """
        names = ["id", "question", "name", "columns", *(("trace", "answer") if traces else ())]
        with _readable(file), _open(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=names, use_threads=False):
                for record in batch.to_pylist():
                    found = json.loads(record["columns"])
                    if columns is not None:
                        found = {name: found[name] for name in columns if found.get(name) is not None}
                    yield Row(
                        record["id"], record["question"], record.get("trace", ""), record.get("answer", ""),
                        record["name"], found,
                    )  # fmt: skip

    def write_drops(
        self, file: pathlib.Path, drops: Sequence[tuple[Row, Drop]], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Writes dropped rows with rule, reason and evidence, in the order of their ids."""
        pa = pyarrow()
        columns = ("id", "rule", "reason", "evidence", "name", "question")
        metadata = {b"s1jax": json.dumps(facts or {}).encode()}
        schema = pa.schema([(name, pa.large_string()) for name in columns], metadata=metadata)
        rows = [
            (row.id, drop.rule, drop.reason, drop.evidence, row.name, row.question)
            for row, drop in sorted(drops, key=lambda pair: (pair[0].id, pair[0].name))
        ]
        with _writer(file, schema) as writer:
            for start in range(0, len(rows), 1 << 16):
                values = zip(*rows[start : start + (1 << 16)], strict=True)
                arrays = [pa.array(map(encoded, column), pa.large_string()) for column in values]
                writer.write_table(pa.table(arrays, schema=schema))

    def read_drops(self, file: pathlib.Path) -> list[tuple[str, Drop]]:
        """Returns (id, drop) of a stage, in the order of the ids."""
        with _readable(file), _open(file) as parquet:
            table = parquet.read(columns=["id", "rule", "reason", "evidence"]).to_pydict()
        names = ("id", "rule", "reason", "evidence")
        return [(one, Drop(*rest)) for one, *rest in zip(*(table[name] for name in names), strict=True)]


def encoded(text: str) -> str:
    """Returns a text that parquet can hold: halves of surrogate pairs, which JSON allows, become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yields lists of rows of bounded number and size."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.question) + len(row.trace) + len(row.answer)
        if len(batch) >= _ROWS_AT_A_TIME or size >= _BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def content_key(paths: Sequence[pathlib.Path]) -> list[list[str]]:
    """Returns (path below its source, digest of the content) of all files of some sources, in order.

    Raises:
      UserError: a source does not exist or cannot be read.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give a file or a folder of rows.")
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest = hashlib.sha256()
            try:
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions.") from None
            found.append([os_name(file, path), digest.hexdigest()])
    return found


def os_name(file: pathlib.Path, source: pathlib.Path) -> str:
    """Returns the name of a file as messages about its rows have it."""
    return str(file) if file == source else f"{source}/{file.relative_to(source).as_posix()}"
