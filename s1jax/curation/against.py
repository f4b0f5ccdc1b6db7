"""Reads the evaluation questions that no chosen row may hold."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence

from s1jax.curation.decontamination import Evaluated
from s1jax.errors import UserError
from s1jax.io import readers
from s1jax.tasks import benchmarks

NONE = "none"
_TASKS = tuple(name for name in benchmarks.NAMES if name != "choices")


def read(names: Sequence[str], notes: list[str] | None = None) -> list[Evaluated]:
    """Reads evaluation sets.

    Args:
      names: files; folders, whose test split is taken, else validation, else train; tasks of `s1jax evaluate`
        such as gsm8k, math500, aime24 and gpqa, from the hub or as NAME:FILE; or `none` alone.
      notes: gets sentences about files that are read and left out.

    Raises:
      UserError: nothing is named, a set does not exist or has no questions, or a row has none; names file and row.
    """
    if not names:
        raise UserError(
            "--against is empty; name the evaluation sets that no row may hold (files, or tasks such as gsm8k,math500),"
            " or --against=none to write rows that were compared with none."
        )
    if NONE in names:
        if len(names) > 1:
            raise UserError(f"--against={','.join(names)} has none and more; leave one of them out.")
        return []
    found: list[Evaluated] = []
    for name in names:
        before = len(found)
        found += _file(name, notes) if pathlib.Path(name).exists() else _task(name, notes)
        if len(found) == before:
            raise UserError(f"--against={name} has no questions; give a set with questions.")
    return found


def key(questions: Sequence[Evaluated]) -> str:
    """Returns 64 hex digits that depend on sets and questions alone."""
    digest = hashlib.sha256()
    for one in questions:
        digest.update("\x1f".join((one.set, one.row, one.question, "")).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def counts(questions: Sequence[Evaluated]) -> dict[str, int]:
    """Returns set -> number of its questions."""
    found: dict[str, int] = {}
    for one in questions:
        found[one.set] = found.get(one.set, 0) + 1
    return found


def _file(name: str, notes: list[str] | None) -> list[Evaluated]:
    path = pathlib.Path(name)
    found = []
    for place, record in readers.read(path, readers.EVALUATION, notes):
        columns = {str(column).lower(): value for column, value in record.items()}
        question = next(
            (str(columns[c]) for c in ("question", "problem", "prompt") if isinstance(columns.get(c), str)), ""
        )
        if not question.strip():
            has = ", ".join(sorted(columns)) or "none"
            raise UserError(f"{place} has no text in a column question, problem or prompt, but {has}; rename it.")
        found.append(Evaluated(path.name if path.is_file() else name, place, question))
    return found


def _task(name: str, notes: list[str] | None) -> list[Evaluated]:
    if name.partition(":")[0].partition("@")[0] not in _TASKS:
        raise UserError(
            f"--against={name} is neither a file nor a task; give {readers.READABLE} files, or out of"
            f" {', '.join(_TASKS)}."
        )
    try:
        task = benchmarks.load(name)
    except UserError as error:
        raise UserError(str(error).replace("--task", "--against")) from None
    if notes is not None:
        notes += [note.replace("--task", "--against") for note in task.notes]
    return [Evaluated(name, task.place(i), str(row["question"])) for i, row in enumerate(task.rows)]
