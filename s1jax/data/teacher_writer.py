"""Writes teacher targets into a folder, see `s1jax.data.teacher_format`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save

from s1jax.data.packing import Example
from s1jax.data.teacher_format import (
    FORMAT,
    REMEDY,
    SETTINGS,
    Settings,
    content_digest,
    key,
    pack,
    read_settings,
    shard_keys,
    shards,
)  # fmt: skip
from s1jax.errors import UserError
from s1jax.io import files

_SHARD_BYTES = 1 << 28


class Writer:
    """Adds rows to a folder, which it makes if there is none; a context manager. One process at a time has it.

    Rows reach the disk in whole files. What a killed process had not written yet is missing from `known` afterwards,
    and nothing else.

    Attributes:
      known: keys of the rows that the folder has.
      written_bytes: of the targets that were added here.
      written_positions: of these.
    """

    def __init__(self, folder: pathlib.Path, settings: Settings):
        """Takes the folder.

        Raises:
          UserError: another process writes it, or it has targets of other settings (named) or other files.
        """
        self._folder, self._settings = folder, settings
        self._rows: list[_Encoded] = []
        self._waiting = 0
        self.written_bytes = self.written_positions = 0
        self._lock = _take(folder)
        try:
            with files.named(folder):
                _begin(folder, settings)
            self._shards = shards(folder)
            self.known = {one for path in self._shards for one in shard_keys(path)}
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.flush()
        finally:
            self._lock.close()

    def add_top_k(self, example: Example, ids: np.ndarray, logprobs: np.ndarray, rest: np.ndarray) -> None:
        """Adds a row of top-k targets.

        Args:
          example: the row.
          ids: int32 [P, k], for each supervised target; the k differ from each other.
          logprobs: float [P, k], of the ids.
          rest: float [P], logarithm of the mass of all other ids; -inf where there are none.
        """
        self._check(example, ids)
        arrays = {
            "ids": pack(ids.reshape(-1).astype(np.uint64), self._settings),
            "logprobs": logprobs.reshape(-1).astype(np.float16),
            "rest": rest.astype(np.float32),
        }
        self._add(_Encoded(key(example), len(ids), ids.size, arrays))

    def add_draws(self, example: Example, ids: np.ndarray) -> None:
        """Adds a row of draws, int32 [P, N] ids for each supervised target, in any order."""
        self._check(example, ids)
        ordered = np.sort(ids, axis=1)
        first = np.ones(ordered.shape, bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        place = np.append(np.flatnonzero(first), ordered.size)  # of each different id; every position begins with one
        counts = np.diff(place).astype(np.uint64)
        distinct = ordered.reshape(-1)[place[:-1]].astype(np.uint64)
        arrays = {
            "ids": pack(distinct << np.uint64(self._settings.count_bits) | counts, self._settings),
            "lengths": first.sum(1).astype(np.uint16),
        }
        self._add(_Encoded(key(example), len(ids), len(distinct), arrays))

    def flush(self) -> None:
        """Writes what was added since the last file as a file of its own."""
        if not self._rows:
            return
        number = 1 + max((int(path.stem.split("-")[1]) for path in self._shards), default=-1)
        path = self._folder / f"targets-{number:05d}.safetensors"
        arrays = {
            name: np.concatenate([row.arrays[name] for row in self._rows]) for name in sorted(self._rows[0].arrays)
        }
        arrays["keys"] = np.stack([np.frombuffer(row.key, np.uint8) for row in self._rows])
        arrays["digests"] = np.stack([np.frombuffer(content_digest(row.arrays), np.uint8) for row in self._rows])
        arrays["positions"] = np.cumsum([0, *(row.positions for row in self._rows)], dtype=np.int64)
        arrays["entries"] = np.cumsum([0, *(row.entries for row in self._rows)], dtype=np.int64)
        content = save(arrays, {"format": str(FORMAT)})
        with files.replace(path) as file:
            file.write(content)
        self._shards.append(path)
        self.written_bytes += len(content)
        self.written_positions += int(arrays["positions"][-1])
        self._rows, self._waiting = [], 0

    def _check(self, example: Example, ids: np.ndarray) -> None:
        assert ids.shape == (example.num_targets, self._settings.size), f"{ids.shape} targets for {example.name}"

    def _add(self, row: _Encoded) -> None:
        if row.key in self.known:
            return
        self.known.add(row.key)
        self._rows.append(row)
        self._waiting += sum(array.nbytes for array in row.arrays.values())
        if self._waiting >= _SHARD_BYTES:
            self.flush()


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A row in the form of a file; `arrays` are its parts of those of a file."""

    key: bytes
    positions: int
    entries: int
    arrays: dict[str, np.ndarray]


def _take(folder: pathlib.Path) -> BinaryIO:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the targets.")
    folder.mkdir(parents=True, exist_ok=True)
    file = files.append(folder / ".lock")
    if not files.take(file):
        file.close()
        raise UserError(f"another process writes {folder}; wait until it has ended, or choose another folder.")
    return file


def _begin(folder: pathlib.Path, settings: Settings) -> None:
    """Writes the settings of a new folder, or compares them with those of an old one."""
    if not (folder / SETTINGS).exists():
        if any(path.name != ".lock" and not path.name.endswith(".part") for path in folder.iterdir()):
            raise UserError(f"{folder} has other files than targets of a teacher; {REMEDY}.")
        content = {"format": FORMAT, **dataclasses.asdict(settings)}
        files.write_text(folder / SETTINGS, json.dumps(content, indent=2) + "\n")
        return
    there = read_settings(folder)
    for field in dataclasses.fields(Settings):
        if field.name in ("chat", "source"):
            continue
        old, new = getattr(there, field.name), getattr(settings, field.name)
        if old != new:
            raise UserError(f"{folder} has targets with {field.name} {old!r:.80}, not {new!r:.80}; {REMEDY}.")
