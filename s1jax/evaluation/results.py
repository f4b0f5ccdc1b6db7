"""Reads the folder that an evaluation has written."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from s1jax.config.schema import shown
from s1jax.errors import UserError
from s1jax.tasks.task import Row


def read(
    out: pathlib.Path,
    run: str,
    num_problems: int,
    journal: Iterable[Row],
    now: Row | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns results and samples of an evaluation that are in its folder already; empty if it has none.

    Args:
      out: the folder.
      run: fingerprint of the evaluation.
      num_problems: of its task.
      journal: samples of an evaluation that has no results yet.
      now: the known part of the evaluation's own results, to name what differs.

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
        raise UserError(f"{file} or {samples} is damaged or missing; remove both, or choose another folder.") from None
    if not same:
        what = differences(earlier, now or {}) if earlier else "its settings are not known"
        raise UserError(f"{own} belongs to another evaluation ({what}); choose another folder, or remove that file.")
    return earlier, there


def key(row: Row) -> tuple[str, int, int]:
    """What distinguishes a sample of an evaluation from all others."""
    return row["run"], row["problem"], row["attempt"]


def differences(earlier: Row, now: Row) -> str:
    """Says which settings of two results differ, with their values; there is at least one.

    The path of a checkpoint does not count, its weights do. Results of earlier versions do not name them: then
    provenance and step stand for them.
    """
    found = []
    before, after = (_settings(results) for results in (earlier, now))
    for name in dict.fromkeys((*before, *after)):
        was, now_is = (shown(one[name]) if name in one else "not set" for one in (before, after))
        if was != now_is:
            found.append(f"{name} was {was} and is {now_is}")
    fields = ("weights",) if "weights" in earlier else ("checkpoint", "step")
    if any(name in now and earlier.get(name) != now[name] for name in fields):
        found.append("the checkpoint has other weights")
    return ", ".join(found) or "its questions were others"


def _settings(results: Row) -> dict[str, Any]:
    asked = results.get("asked")
    asked = dict(asked) if isinstance(asked, Mapping) else {}
    controls = asked.pop("controls", {})
    asked.pop("checkpoint", None)
    # The dtype in use: the setting may be empty.
    found = asked | (dict(controls) if isinstance(controls, Mapping) else {}) | {"dtype": results.get("dtype")}
    return json.loads(json.dumps(found))  # tuples become lists, as in the file


def model_name(checkpoint: str) -> str:
    """What a picture calls a checkpoint: `runs/s1` is s1, `package:NAME` is NAME."""
    return pathlib.Path(checkpoint).name.removeprefix("package:")
