"""Keeps finished rows on disk during a run, so that the same command continues where a killed one stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from s1jax.errors import UserError
from s1jax.io import files, lines


def fingerprint(asked: Mapping[str, Any]) -> str:
    """16 hex digits that identify everything that determines the rows of a run; `asked` contains JSON values."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def read(path: pathlib.Path, run: str, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Reads the rows of a run.

    Args:
      path: the file.
      run: fingerprint of the run.
      start: bytes to leave out at the front, up to the end of a line.

    Returns:
      the rows, and the bytes they take; an incomplete last line is left out.

    Raises:
      UserError: the file contains rows of another run, or something else.
    """
    found = list(scan(path, run, start))
    return [row for *_, row in found], (found[-1][1] if found else start) - start


def scan(path: pathlib.Path, run: str, start: int = 0) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yields (first byte, byte after it, row) of the lines of a run, one by one; arguments and errors as of `read`."""
    foreign = UserError(f"{path} is not the output of a run; choose another file, or remove it.")
    begin = _line({}, run)[: -len(b"}\n")]
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                # Somebody's text without a newline at its end.
                if not (line.startswith(begin) or begin.startswith(line)):
                    raise foreign
                return
            try:
                row = json.loads(line)
                same = row["fingerprint"] == run
            except (ValueError, KeyError, TypeError):
                if start:
                    raise damaged(path, start) from None
                raise foreign from None
            if not same:
                raise UserError(
                    f"{path} belongs to another run (other checkpoint, rows or settings); choose another file, or"
                    " remove it."
                )
            yield start, start + len(line), row
            start += len(line)


def damaged(path: pathlib.Path, begin: int) -> UserError:
    """Returns the error for a line of a run that cannot be read; `begin` is its first byte."""
    number, end = 0, 0
    with path.open("rb") as file:
        while end < begin and (line := file.readline()):
            number, end = number + 1, end + len(line)
    return UserError(
        f"{path}: line {number + 1} is damaged; repair it, or remove this one line and run the same command again: the"
        " other lines stay, and what it held is done once more."
    )


def _line(row: Mapping[str, Any], run: str) -> bytes:
    return lines.encoded({"fingerprint": run, **row})


def _stands_at(path: pathlib.Path, file: BinaryIO) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _lock(path: pathlib.Path) -> BinaryIO:
    """Opens the file for this process alone."""
    try:
        file = files.append(path)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link, which is not followed; remove it, or choose another file.") from None
    if not files.take(file) or not _stands_at(path, file):  # its owner has it, or removed it since it was opened
        file.close()
        raise UserError(f"another process writes {path}; wait until it has ended, or choose another file.")
    return file


class Journal:
    """The rows of one run, one JSON line each, appended as they finish. One process at a time holds the file.

    Attributes:
      rows: the rows that the file had when it was opened, or what `keep` made of them.
    """

    def __init__(
        self, path: str | os.PathLike[str], run: str, keep: Callable[[int, dict[str, Any]], Any] | None = None
    ):
        """Locks the file and reads it; creates it if there is none.

        Args:
          path: the file.
          run: the fingerprint of the run (`fingerprint`); every row has it in its field of that name.
          keep: what `rows` gets of a row, from the first byte of its line and the row; None: the row. A journal of long
            texts need not fit into memory.

        Raises:
          UserError: another process writes it, or see `read`.
        """
        self._path, self._run = pathlib.Path(path), run
        self._file: BinaryIO | None = _lock(self._path)
        try:
            self.rows, self._size = [], 0
            for begin, end, row in scan(self._path, run):
                self._size = end
                try:
                    self.rows.append(row if keep is None else keep(begin, row))
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise damaged(self._path, begin) from None
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(self._size)

    def append(self, row: Mapping[str, Any]) -> int:
        """Writes a row, which then survives the end of the process; returns the first byte of its line."""
        assert self._file is not None, "the journal is closed"
        line, begin = _line(row, self._run), self._size
        with files.named(self._path):
            self._file.write(line)
            self._file.flush()
        self._size += len(line)
        return begin

    def close(self) -> None:
        """Syncs the file to disk, removes it if it is empty, and releases the lock."""
        if self._file is not None:
            with files.named(self._path):
                os.fsync(self._file.fileno())
                if not os.fstat(self._file.fileno()).st_size:
                    self.remove()
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Removes the file after its rows were copied elsewhere; a later open creates a new file."""
        if self._file is not None and _stands_at(self._path, self._file):
            self._path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
