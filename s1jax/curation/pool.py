"""The pool of a curation: its rows in memory without traces, and whole in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from s1jax.curation import reading, stages, tokens
from s1jax.curation.row import Drop, Row
from s1jax.curation.stages import Stages
from s1jax.errors import UserError

_LONGEST = 200  # characters of a text column that is kept in memory for all rows


class Pool:
    """Rows of some sources, read once into a stage.

    Attributes:
      key: of the stage.
      rows: all of them in the order of the file, without traces and without long columns that no rule reads. Ids are
        all different but those of copies.
      drops: index -> why a row cannot be used.
      notes: what the reader said.
    """

    def __init__(self, sources: Sequence[str], traces: str, tokenizer: str, folder: Stages, wanted: Collection[str]):
        """Reads the sources, unless the stage has them.

        Args:
          sources: see `s1jax.curation.reading.rows`.
          traces: `gemini` or `deepseek`.
          tokenizer: that counts `trace_tokens` of rows without that column; empty: none.
          folder: of the stages.
          wanted: columns that rules read.

        Raises:
          UserError: there are no rows, or as the reader does.
        """
        if not sources:
            raise UserError("--rows is empty; name files or folders of rows.")
        self.file, self._folder = folder.file(0, "rows"), folder
        local = [path for name in sources if (path := reading.source(name)) is not None]
        published = [name for name in sources if reading.source(name) is None]
        settings = {"files": stages.content_key(local), "published": published, "traces": traces}
        if tokenizer:
            settings["tokenizer"] = tokens.key(tokenizer)
        self.key = stages.key("", "rows", settings)
        facts = folder.facts(self.file, self.key)
        if facts is None:
            facts = self._read(sources, traces, tokenizer)
        self.notes: list[str] = facts["notes"]
        self.rows = [_slim(row, wanted) for row in folder.read_rows(self.file, traces=False)]
        self.drops: dict[int, Drop] = {}
        for i, (row, drop) in enumerate(reading.numbered(self.rows)):
            self.rows[i] = row
            if drop is not None:
                self.drops[i] = drop

    def _read(self, sources: Sequence[str], traces: str, tokenizer: str) -> dict[str, list[str]]:
        notes: list[str] = []

        def found() -> Iterator[Row]:
            for row, drop in reading.rows(sources, traces, notes):
                yield reading.marked(row, drop, tokenizer)

        facts = {"key": self.key, "notes": notes}
        if not self._folder.write_rows(self.file, found(), facts):
            raise UserError(f"--rows={','.join(sources)} has no rows; give a source with rows.")
        return facts  # type: ignore[return-value]

    def drop_without_traces(self, preset: str) -> None:
        """Drops questions that nothing was written for."""
        for i, row in enumerate(self.rows):
            if i not in self.drops and (drop := reading.without_trace(row, preset)) is not None:
                self.drops[i] = drop

    def whole(self, wanted: Collection[str]) -> Iterator[Row]:
        """Yields rows with traces and all columns, in the order of the file.

        Args:
          wanted: their ids.
        """
        for i, row in enumerate(self._folder.read_rows(self.file, traces=True)):
            row_id = self.rows[i].id
            if i not in self.drops and row_id in wanted:
                yield dataclasses.replace(row, id=row_id)


def _slim(row: Row, wanted: Collection[str]) -> Row:
    columns = {
        name: value
        for name, value in row.columns.items()
        if name in wanted
        or name in reading.HIDDEN
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and len(value) <= _LONGEST)
    }
    return dataclasses.replace(row, columns=columns)
