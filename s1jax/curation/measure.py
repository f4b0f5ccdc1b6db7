"""Measures the rows of a pool and writes them with the new columns: `s1jax.measure`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from s1jax.curation.measurement import Columns, Measurement, Named, Note
from s1jax.errors import UserError
from s1jax.io import files, paths, readers

ROWS = "rows.jsonl"


def measure(
    rows: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    measurements: Sequence[Measurement],
    *,
    on_note: Note | None = None,
) -> list[Columns] | None:
    """Writes rows to `out`/rows.jsonl with all their columns and those that are measured.

        engine = s1jax.Engine("runs/student")
        s1jax.measure(["pool.jsonl"], "runs/measured", [PassRates(engine, tries=8), Clusters(50)])

    Args:
      rows: files and folders; of a folder the train split is read.
      out: folder; may exist. A measurement may keep there what it goes on from after an interruption.
      measurements: one after the other: `s1jax.curation.difficulty.PassRates`, `answered.TriesOf`, `verdicts.Correct`,
        `domains.Clusters`, `labels.Labels`.
      on_note: gets sentences about rows without a value; by default they are logged as warnings.

    Returns:
      what was measured; None in all processes of a run but the first, which writes.

    Raises:
      UserError: a file cannot be read, `out` is not a folder, or see `Measurement`.
    """
    note = on_note or logging.getLogger(__name__).warning
    if not measurements:
        raise UserError("nothing is to be measured; give at least one measurement.")
    folder = paths.local(out, "out")
    files.check_not_read(rows, folder / ROWS, "out")
    named = read(rows, note)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the path of one.")
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Columns] = []
    for measurement in measurements:
        columns = measurement(named, folder, note)
        if columns is None:
            return None
        found.append(columns)
    with files.replace(folder / ROWS) as file:
        for place, (_, row) in enumerate(named):
            file.write(json.dumps(_with(row, found, place), ensure_ascii=False).encode() + b"\n")
    return found


def read(sources: Sequence[str | os.PathLike[str]], note: Note) -> list[Named]:
    """Reads the rows of a pool.

    Args:
      sources: files and folders.
      note: gets sentences about files that are left out.

    Raises:
      UserError: a source cannot be read or holds a value that JSON does not have, or there are no rows.
    """
    found: list[Named] = []
    for source in sources:
        notes: list[str] = []
        for name, row in readers.read(source, readers.TRAINING, notes):
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except (TypeError, UnicodeEncodeError) as error:
                raise UserError(f"{name} has a value that JSON does not have ({error}); write it as a text.") from None
            found.append((name, row))
        for sentence in notes:
            note(sentence)
    if not found:
        raise UserError(f"{', '.join(map(str, sources))} holds no rows; give at least one question.")
    return found


def _with(row: Any, found: Sequence[Columns], place: int) -> dict[str, Any]:
    """Returns a row with measured columns; one of an earlier measurement goes where the new one has no value."""
    columns = dict(row)
    for one in found:
        for name, value in one.values[place].items():
            columns.pop(name, None)
            if value is not None:
                columns[name] = value
    return columns
