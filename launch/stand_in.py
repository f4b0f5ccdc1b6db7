"""Stands in for s1jax.sample.engine and s1jax.sample.journal until they are there."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from s1jax.config import InputError


class Engine:
    """As s1jax.sample.engine."""

    def __init__(self, model: Any, *, slots: int = 16, cache_length: int = 0, dtype: str = ""):
        self.model, self._slots, self._cache, self._dtype = model, slots, cache_length, dtype

    def stream(self, rows: Any, controls: Any, wait: str = "Wait", names: Any = None) -> Iterator[tuple[int, Any]]:
        """Yields rows as they finish."""
        from s1jax.sample import rows as rows_lib

        for start in range(0, len(rows), self._slots):
            part = slice(start, start + self._slots)
            outputs = rows_lib.sample_rows(
                self.model, rows[part], controls, wait=wait, batch_size=self._slots, cache_length=self._cache,
                dtype=self._dtype, names=names[part],
            )  # fmt: skip
            yield from enumerate(outputs, start)


class Journal:
    """As s1jax.sample.journal."""

    def __init__(self, path: pathlib.Path, run: str):
        self._path, self.rows = path, []
        if path.exists():
            first, *lines = path.read_text().split("\n")
            if json.loads(first) != run:
                raise InputError(f"{path} belongs to another run; choose another --out, or remove it.")
            self.rows = [json.loads(line) for line in lines[:-1]]
        else:
            path.write_text(json.dumps(run) + "\n")

    def append(self, row: Any) -> None:
        """Adds a row."""
        with self._path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
