"""Reads rows from files and folders: the one reader for training rows, problems and prompts.

Formats: JSON Lines and JSON arrays (also with `.gz`), CSV and TSV, parquet, Arrow (stream or file format), folders that
`Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, folders prepared by TFDS, and folders of such files at any
depth. The splits of a folder are those of the `datasets` library (`s1jax.io.splits`, `s1jax.io.cards`).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from s1jax.errors import MissingPackageError, UserError
from s1jax.io import cards, splits

Record = Mapping[str, Any]
Named = tuple[str, Record]  # what messages call the record (`file:row`), and its columns

TRAINING = ("train",)
EVALUATION = ("test", "validation", "train")

# In the worst case (one long word, Qwen2.5's tokenizer) a text of this length takes 9 s and 0.4 GB, and one 100 times
# as long takes all memory. It is about 250,000 tokens: more than the context of the models here.
MAX_CHARACTERS = 1_000_000
# Limit of one line of JSON or one field of CSV: room for many texts of that length, and still parsed in memory.
MAX_BYTES = 64 << 20
MAX_ARRAY_BYTES = 4 << 30  # a JSON array is held in memory as text

KINDS = {
    ".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".parquet": "parquet",
    ".arrow": "Arrow",
}  # fmt: skip
READABLE = "JSONL, JSON, CSV (also .gz), parquet or Arrow"
_MAGIC = {
    b"PAR1": "parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_NOT_ROWS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_BOM = b"\xef\xbb\xbf"  # some editors begin a file with it


def check_length(text: str, name: str, column: str) -> None:
    """Raises UserError if a text is too long for a tokenizer, see `MAX_CHARACTERS`."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{name}: {column} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read; shorten it or remove"
            " the row."
        )


def read(
    path: str | os.PathLike[str], wanted: Sequence[str] = TRAINING, notes: list[str] | None = None
) -> Iterator[Named]:
    """Yields (name, columns) of the rows of a file or folder.

    Args:
      path: a file, which is always read, or a folder.
      wanted: splits; the first one that the folder has is read.
      notes: gets a sentence about the files that are read and left out, or about a file whose name is that of another
        split.

    Raises:
      UserError: if there is nothing to read, a folder has none of the splits, or a file does not parse; names file
        and row.
    """
    path = pathlib.Path(path)
    if notes is not None and not set(wanted) & set(_named_for(path)):
        notes.append(f"{path} is read, as it was asked for, although its name says {' and '.join(_named_for(path))}.")
    if path.is_dir():
        yield from _folder(path, wanted, [] if notes is None else notes)
    elif path.is_file():
        yield from read_file(path)
    else:
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a {READABLE} file, or a folder of them.")


def _named_for(path: pathlib.Path) -> list[str]:
    """The splits in the name of a file. For a folder the whole name counts: `my_test_runs` names no split."""
    is_word = path.is_dir() and path.name.isalpha()
    return list(splits.assign([f"{path.name}/rows" if is_word else "rows" if path.is_dir() else path.name]))


def read_file(file: str | os.PathLike[str]) -> Iterator[Named]:
    """Yields (`file:row`, columns) of one file; rows of JSON Lines are named by their line, counted from 1.

    A file without a known suffix is read as JSON, unless its first bytes show another format.

    Raises:
      UserError: if the file cannot be read or parsed, or its content is not what its suffix says.
    """
    file = pathlib.Path(file)
    with _readable(file):
        with file.open("rb") as stream:
            head = stream.read(8)
        zipped, kind = _kind(file, head)
        if kind == "parquet":
            yield from _parquet(file)
        elif kind == "Arrow":
            yield from _arrow(file)
        else:
            with gzip.open(file) if zipped else file.open("rb") as binary:
                yield from _csv(file, binary) if kind == "CSV" else _json(file, binary)  # type: ignore[arg-type]


@contextlib.contextmanager
def _readable(file: pathlib.Path) -> Iterator[None]:
    """Turns errors of the operating system and of gzip into one sentence."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file} is a damaged or cut gzip file ({error}); write it again.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); check it and its permissions.") from None


def _kind(file: pathlib.Path, head: bytes) -> tuple[bool, str]:
    """Returns whether a file is compressed, and its format: JSON, CSV, parquet or Arrow."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    known = KINDS.get("".join(suffixes[-2:-1] if zipped else suffixes[-1:]))
    content = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if content == "UTF-16":
        raise UserError(f"{file} is not UTF-8 text but begins as UTF-16 does; save it as UTF-8.")
    if content in ("zip", "zstd"):
        raise UserError(f"{file} is a {content} file; unpack it and give {READABLE}.")
    if content in ("parquet", "Arrow", "gzip"):
        says = "gzip" if zipped else known
        if says not in (None, content):
            raise UserError(f"{file} is {content} by its content, which its name does not say; rename it.")
        if content != "gzip":
            return False, content
        if known in ("parquet", "Arrow"):
            raise UserError(f"{file} is {known} in gzip, which is not read; unpack it.")
        return True, known or "JSON"
    if zipped:
        raise UserError(f"{file} is not a gzip file, although its name says so; rename it or write it again.")
    return False, known or "JSON"


def _json(file: pathlib.Path, stream: BinaryIO) -> Iterator[Named]:
    """JSON Lines, or one array of objects."""
    begun = False
    for number in itertools.count(1):
        line, name = stream.readline(MAX_BYTES + 1), f"{file}:{number}"  # bytes: only a newline ends a line
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line:
            return
        if not line.strip():
            continue
        if line.lstrip().startswith(b"[") and not begun:
            yield from _array(file, line + stream.read(MAX_ARRAY_BYTES))
            return
        begun = True
        if len(line) > MAX_BYTES:
            raise UserError(f"{name} is a line of more than {MAX_BYTES >> 20} MB; shorten or remove it.")
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            more = " (a .json file holds one array of rows, or a row a line)" if file.suffix == ".json" else ""
            raise UserError(f"{name} is not JSON ({error}); repair or remove the line{more}.") from None
        yield name, _object(record, name)


def _array(file: pathlib.Path, content: bytes) -> Iterator[Named]:
    """Yields the objects of a JSON array one by one, so that only the text is in memory."""
    if len(content) > MAX_ARRAY_BYTES:
        raise UserError(f"{file} is a JSON array of more than {MAX_ARRAY_BYTES >> 30} GB; write a row a line (.jsonl).")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not JSON in UTF-8 ({error}); save it as UTF-8.") from None
    del content
    decoder = json.JSONDecoder()
    at = _blank(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        number = 0
        at += 1
    else:
        for number in itertools.count(1):
            name = f"{file}:{number}"
            try:
                record, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name} is not JSON ({error}); repair or remove the row.") from None
            if end - at > MAX_BYTES:
                raise UserError(f"{name} is a row of more than {MAX_BYTES >> 20} MB; shorten or remove it.")
            yield name, _object(record, name)
            at = _blank(text, end)
            if text[at : at + 1] == "]":
                at += 1
                break
            if text[at : at + 1] != ",":
                raise UserError(f"{name} is followed by neither a comma nor the end of the array; repair the file.")
            at = _blank(text, at + 1)
    if _blank(text, at) < len(text):
        raise UserError(f"{file} has text after its array of {number} rows; write one array, or a row a line.")


def _blank(text: str, at: int) -> int:
    """Returns the index of the first character from `at` on that is not JSON white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _object(record: Any, name: str) -> Record:
    if not isinstance(record, dict):
        raise UserError(f"{name} is a JSON {type(record).__name__}, not an object of columns; repair it.")
    return record


def _csv(file: pathlib.Path, stream: BinaryIO) -> Iterator[Named]:
    csv.field_size_limit(MAX_BYTES)
    delimiter = "\t" if ".tsv" in file.suffixes[-2:] else ","
    try:
        with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, delimiter=delimiter, strict=True)
            columns = list(rows.fieldnames or ())
            twice = [column for column in dict.fromkeys(columns) if columns.count(column) > 1]
            if twice:
                raise UserError(f"{file} has the column {twice[0]!r} more than once; rename one of them.")
            for number, record in enumerate(rows, start=1):
                if None in record:
                    raise UserError(f"{file}:{number} has more fields than the {len(columns)} columns; repair it.")
                yield f"{file}:{number}", record
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not CSV in UTF-8 ({error}); repair it.") from None


@contextlib.contextmanager
def _pyarrow(file: pathlib.Path, kind: str) -> Iterator[None]:
    try:
        import pyarrow
    except ImportError:
        raise MissingPackageError(f"{file} is {kind} and", "pyarrow", "data") from None
    try:
        yield
    # Text that is not UTF-8 raises ValueError, an unknown time zone KeyError, an impossible date OverflowError.
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a readable {kind} file ({reason}); write it again.") from None


def _parquet(file: pathlib.Path) -> Iterator[Named]:
    with _pyarrow(file, "parquet"):
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _batches(file, table.iter_batches(batch_size=256))


def _arrow(file: pathlib.Path) -> Iterator[Named]:
    with _pyarrow(file, "Arrow"):
        import pyarrow

        with pyarrow.OSFile(str(file)) as source:  # not mapped: a file that shrinks then kills the process
            if source.read(6) == b"ARROW1":
                table = pyarrow.ipc.open_file(source)
                found = (table.get_batch(i) for i in range(table.num_record_batches))
            else:  # the stream format, which `datasets` writes
                source.seek(0)
                found = iter(pyarrow.ipc.open_stream(source))
            yield from _batches(file, (part.slice(i, 256) for part in found for i in range(0, part.num_rows, 256)))


def _batches(file: pathlib.Path, found: Iterator[Any]) -> Iterator[Named]:
    number = 0
    for batch in found:
        batch.validate(full=True)  # otherwise a flipped bit in an offset kills the process instead of raising
        for record in batch.to_pylist():
            number += 1
            yield f"{file}:{number}", record


# Folders.


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some rows of a folder, with their name in messages and a function that reads them."""

    name: str
    rows: Callable[[], Iterator[Named]]

    def count(self) -> str:
        """The number of its rows, as a phrase."""
        try:
            number = sum(1 for _ in self.rows())
        except UserError:  # a part that is left out may be damaged
            return "cannot be read"
        return f"{number:,} row{'s' * (number != 1)}"


def _folder(path: pathlib.Path, wanted: Sequence[str], notes: list[str]) -> Iterator[Named]:
    parts, unread = _parts(path)
    split = next((split for split in wanted if split in parts), None)
    if split is None:
        raise UserError(
            f"{path} has the split{'s' * (len(parts) > 1)} {', '.join(parts)}, but no {' or '.join(wanted)}; give the"
            " file or the folder of the split that you mean."
        )
    taken = {part.name for part in parts[split]}
    said = f"{path}: split {split} is taken, {_listed([part.name for part in parts[split]])}"
    others = {other: [part for part in some if part.name not in taken] for other, some in parts.items()}
    left = [
        f"{other or 'in no split'} ({_listed([f'{part.name}, {part.count()}' for part in some], '; ')})"
        for other, some in others.items()
        if some
    ]
    if left:
        said += f"; left out: {', '.join(left)}"
    both = [part.name for other, some in parts.items() if other != split for part in some if part.name in taken]
    if both:
        said += f"; of these, {_listed(both)} would be in another split, too, by the name"
    if unread:
        said += f"; not read: {_listed(unread)}"
    if len(parts) > 1 or unread or split != wanted[0]:
        notes.append(said + ".")
    for part in parts[split]:
        yield from part.rows()


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    shown = 8  # a folder may have thousands of shards
    return separator.join(names[:shown]) + (f"{separator}and {len(names) - shown} more" if len(names) > shown else "")


def _parts(path: pathlib.Path) -> tuple[dict[str, list[_Part]], list[str]]:
    """Returns split -> parts of a folder ("" for no split), and the names of files that are not read."""
    if (path / "dataset_dict.json").is_file():
        names = _metadata(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(_is_name(name) for name in names):
            raise UserError(f"{path / 'dataset_dict.json'} has no list `splits` of folders; save the dataset again.")
        return {name: [_saved(path / name, name)] for name in names}, []
    if (path / "state.json").is_file() and "_data_files" in (state := _metadata(path / "state.json")):
        return {state.get("_split") or "train": [_saved(path, path.name)]}, []
    if (path / "dataset_info.json").is_file() and (tfds := _tfds_splits(path)):
        return {split: [_Part(split, lambda split=split: _tfds(path, split))] for split in tfds}, []  # type: ignore[misc]
    return _plain(path)


def _plain(path: pathlib.Path) -> tuple[dict[str, list[_Part]], list[str]]:
    files, unread = [], []
    for folder, folders, names in os.walk(path):
        linked = [name for name in folders if (pathlib.Path(folder) / name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        unread += [str((pathlib.Path(folder) / name).relative_to(path)) for name in linked]
        for name in names:
            suffixes = [suffix.lower() for suffix in pathlib.Path(name).suffixes]
            packed = suffixes[-1:] == [".gz"]
            place = pathlib.Path(folder) / name
            if name.startswith(".") or name in _NOT_ROWS or _is_about(name, names):
                continue
            if "".join(suffixes[-2:-1] if packed else suffixes[-1:]) in KINDS:
                files.append(place)
            elif any(suffix in KINDS for suffix in suffixes[:-1]) or suffixes[-1:] == [".zip"]:
                unread.append(str(place.relative_to(path)))
    for file in sorted(files):
        if not file.exists():
            raise UserError(f"{file} is a link to a file that does not exist; repair or remove it.")
    if not files:
        raise UserError(f"{path} is a folder without files of rows; give one that holds {READABLE}.")
    known = {file.relative_to(path).as_posix(): file for file in sorted(files)}
    found = cards.assign(path, list(known)) or splits.assign(known)
    rest = [name for name in known if not any(name in some for some in found.values())]
    parts = {
        split: [_Part(name, lambda file=known[name]: read_file(file)) for name in some]  # type: ignore[misc]
        for split, some in {**found, "": rest}.items()
        if some
    }
    return parts, sorted(unread)


def _is_about(name: str, beside: Sequence[str]) -> bool:
    """Whether a file in a folder of `datasets` or TFDS is metadata or a cache, not rows."""
    saved = "dataset_info.json" in beside
    return saved and (name in ("state.json", "features.json") or name.startswith(("cache-", "indices-")))


def _saved(folder: pathlib.Path, name: str) -> _Part:
    """A folder of `Dataset.save_to_disk`: `state.json` names its Arrow files."""

    def rows() -> Iterator[Named]:
        state = _metadata(folder / "state.json")
        files = state.get("_data_files")
        listed = files if isinstance(files, list) else [files]
        names = [file.get("filename") if isinstance(file, dict) else None for file in listed]
        if not all(map(_is_name, names)):
            raise UserError(f"{folder / 'state.json'} has no list `_data_files` of file names; save it again.")
        if state.get("_indices_data_files"):
            raise UserError(f"{folder} holds rows by index, as datasets 1 wrote them; save it again with a newer one.")
        for file in names:
            if not (folder / str(file)).is_file():
                raise UserError(f"{folder / str(file)} is missing, which state.json names; save the dataset again.")
            yield from _arrow(folder / str(file))

    return _Part(name, rows)


def _is_name(name: Any) -> bool:
    """Whether `name` is a plain file name; metadata of foreign folders might point elsewhere."""
    return isinstance(name, str) and bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _metadata(file: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON that can be read ({error}); save the dataset again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object; save the dataset again.")
    return values


def _tfds_splits(folder: pathlib.Path) -> list[str]:
    """Returns the splits of a folder that TFDS prepared; an empty list for one that `datasets` wrote."""
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        found = info.get("splits")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{folder} is not a prepared dataset that can be read ({error}); prepare it again.") from None
    if not isinstance(found, list):  # `datasets` writes a dict, or nothing
        return []
    names = [split.get("name") if isinstance(split, dict) else None for split in found]
    if not names or not all(map(_is_name, names)):
        raise UserError(f"{folder} is not a prepared dataset that can be read (no splits); prepare it again.")
    return [str(name) for name in names]


def _tfds(folder: pathlib.Path, split: str) -> Iterator[Named]:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise MissingPackageError(f"{folder}, a prepared dataset,", "tensorflow-datasets", "data") from None
    try:
        found = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
    except Exception as error:  # TFDS raises different errors for different damage
        raise UserError(f"{folder} is not a prepared dataset that can be read ({error}); prepare it again.") from error
    for number, record in enumerate(found, start=1):
        columns = {key: _decoded(value) for key, value in record.items()}
        name = columns.pop("name", None)  # where `s1jax.data.s1k_builder` found it
        yield name if isinstance(name, str) else f"{folder}:{number}", columns


def _decoded(value: Any) -> Any:
    """Converts values of TFDS to those of JSON: bytes to text, arrays to lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _decoded(inner) for key, inner in value.items()}
    if hasattr(value, "dtype"):
        return value.tolist() if not value.dtype.hasobject else [_decoded(inner) for inner in value.tolist()]
    return [_decoded(inner) for inner in value] if isinstance(value, list | tuple) else value
