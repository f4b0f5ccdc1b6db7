"""What an evaluation has in its folder when the same command is given again."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from s1jax.errors import UserError


def read(
    out: pathlib.Path, run: str, num_problems: int, journal: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns results and samples of an evaluation that are in its folder already; empty where it has none.

    Args:
      out: the folder.
      run: fingerprint of the evaluation.
      num_problems: of its task.
      journal: samples of an evaluation that has no results yet.

    Raises:
      UserError: the folder holds results or samples of another evaluation, or damaged ones.
    """
    file, samples = out / "results.json", out / "samples.jsonl"
    if not file.exists() and not samples.exists():
        return {}, []
    earlier: dict[str, Any] = {}
    try:
        there = [json.loads(line) for line in samples.read_bytes().splitlines()]
        found = {key(row) for row in there}
        if file.exists():
            own, earlier = file, json.loads(file.read_text())
            same = earlier.get("fingerprint") == run
            if same and not all(0 <= problem < num_problems for _, problem, _ in found):
                raise ValueError
        else:  # of a process that was killed before it wrote its results: the journal has the same samples
            own, same, there = samples, found <= {key(row) for row in journal}, []
    except (ValueError, AttributeError, KeyError, TypeError, FileNotFoundError):
        raise UserError(f"{file} or {samples} is damaged or missing; remove both, or choose another --out.") from None
    if not same:
        raise UserError(
            f"{own} belongs to another evaluation (other checkpoint, questions or settings); choose another --out, or"
            " remove that file."
        )
    return earlier, there


def key(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What tells a sample of an evaluation from all others."""
    return row["run"], row["problem"], row["attempt"]
