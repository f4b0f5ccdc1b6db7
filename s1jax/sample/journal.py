"""Finished rows on disk while a run goes on, so that the same command continues where a killed one stopped."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

from s1jax.config import InputError


def fingerprint(asked: Mapping[str, Any]) -> str:
    """16 hex digits that stand for all that determines a run's rows; `asked` holds JSON values."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def read(path: pathlib.Path, run: str) -> tuple[list[dict[str, Any]], int]:
    """Reads the rows of a run.

    Returns:
      the rows, and the bytes they take; a last line that was not written to its end is left out.

    Raises:
      InputError: the file holds rows of another run, or something else.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            same = row["fingerprint"] == run
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is no output of a run; choose another file, or remove it.") from None
        if not same:
            raise InputError(
                f"{path} belongs to another run (other checkpoint, rows or settings); choose another file, or remove"
                " it."
            )
        rows.append(row)
        size += len(line)
    return rows, size


class Journal:
    """The rows of one run, a JSON line each, appended as they end.

    Attributes:
      rows: those that were there when the file was opened.
    """

    def __init__(self, path: str | os.PathLike[str], run: str):
        """Reads the file, if there is one; it is made with the first row.

        Args:
          path: of the file.
          run: see `fingerprint`; every row has it in its field of that name.

        Raises:
          InputError: see `read`.
        """
        self._path, self._run = pathlib.Path(path), run
        self.rows, self._size = read(self._path, run) if self._path.exists() else ([], 0)
        self._file: BinaryIO | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a row; from then on it outlives the process."""
        if self._file is None:
            self._file = self._path.open("ab")
            self._file.truncate(self._size)
        self._file.write(json.dumps({"fingerprint": self._run, **row}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Brings everything to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
