"""The journals of a run that several processes share: each writes its own file and reads those of the others."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from s1jax.errors import UserError
from s1jax.io import journal as journal_lib
from s1jax.io.journal import Journal

Row = dict[str, Any]  # of JSON values
_LOOK = 1.0  # seconds between two looks at the files of other processes


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows that one process of a run takes: every `num_processes`-th, from number `process` on.

    It depends on nothing but the index of a row, so that processes need not agree on it.
    """

    process: int = 0
    num_processes: int = 1

    def __contains__(self, index: int) -> bool:
        return index % self.num_processes == self.process

    def count(self, total: int) -> int:
        """How many of `total` rows are this process's."""
        return len(range(self.process, total, self.num_processes))

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all have found, and speaks for all."""
        return self.process == 0


ALONE = Share()  # all rows


class Journals:
    """The rows of one run. Process 0 appends to FILE, as a process alone does, and process I to FILE-I.

    The files of an earlier run are read whatever its number of processes was. Files that no process of this run has as
    its own belong to process 0, so that a process that is still writing one is noticed.

    Attributes:
      rows: what all files had when they were opened, what was appended here, and what `gather` has found.
    """

    def __init__(self, path: pathlib.Path, run: str, share: Share):
        """Locks and reads the files; creates that of this process if there is none.

        Args:
          path: FILE.
          run: the fingerprint of the run, see `journal.fingerprint`.
          share: of this process.

        Raises:
          UserError: another process writes one of the files, or one is not of this run.
        """
        self._path, self._share = path, share
        self._held = contextlib.ExitStack()
        self._own = self._held.enter_context(Journal(self._file(share.process), run))
        self._files = [self._own]
        self._others: dict[int, _Reader] = {}
        self.rows = list(self._own.rows)
        try:
            for process in sorted({*range(share.num_processes), *self._there()} - {share.process}):
                file = self._file(process)
                if share.is_first and process >= share.num_processes:
                    self._files.append(self._held.enter_context(Journal(file, run)))
                    self.rows += self._files[-1].rows
                else:
                    self._others[process] = _Reader(file, run)
                    self.rows += self._others[process].news()
        except BaseException:
            self._held.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a row of this process; afterwards it survives the end of the process."""
        self._own.append(row)
        self.rows.append(dict(row))

    def gather(self, lacks: Callable[[Sequence[Row]], bool]) -> None:
        """Waits for the rows of the other processes, until `lacks(rows)` is false.

        It does not end by itself if a process is lost. jax ends this process then, see `s1jax.cli.processes`.
        """
        while lacks(self.rows):
            while not (new := [row for other in self._others.values() for row in other.news()]):
                time.sleep(_LOOK)
            self.rows += new

    def wait(self) -> None:
        """Waits until process 0 has written what all have found; of the other processes."""
        self.close()
        while self._path.exists():
            time.sleep(_LOOK)

    def remove(self) -> None:
        """Removes all files after their rows were copied elsewhere; of process 0 only."""
        for process in self._others:
            self._file(process).unlink(missing_ok=True)
        for file in reversed(self._files):  # the first one last: the others wait for that
            file.remove()

    def close(self) -> None:
        """Syncs the file of this process to disk, removes it if it is empty, and releases the locks."""
        self._held.close()

    def _file(self, process: int) -> pathlib.Path:
        return self._path.with_name(f"{self._path.name}-{process}") if process else self._path

    def _there(self) -> list[int]:
        """Numbers of the processes above 0 whose files are there."""
        name = re.compile(re.escape(self._path.name) + "-([1-9][0-9]{0,5})")
        found = (name.fullmatch(file.name) for file in self._path.parent.iterdir())
        return [int(match[1]) for match in found if match]

    def __enter__(self) -> Journals:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class _Reader:
    """Reads the journal of another process, which may go on writing it."""

    def __init__(self, path: pathlib.Path, run: str):
        self._path, self._run, self._size = path, run, 0

    def news(self) -> list[Row]:
        """Returns the rows that were added since the last call; an empty list if the file does not exist."""
        try:
            if self._path.stat().st_size <= self._size:
                return []
            rows, size = journal_lib.read(self._path, self._run, self._size)
        except FileNotFoundError:
            return []
        self._size += size
        return rows


def check_seen(path: pathlib.Path, agree: bool) -> None:
    """Raises a `UserError` unless a process sees the journal of process 0 and works on the same run.

    Args:
      path: of the journal.
      agree: whether this process has the fingerprint that process 0 has.
    """
    if not agree:
        raise UserError(
            "checkpoint, rows or settings are not those of process 0; give all processes the same command and files."
        )
    if not path.exists():
        raise UserError(f"{path}, which process 0 has, is not there; all processes have to see the same folder.")
