"""Finds a checkpoint's own evaluation, as `GET /v1/curve` has it: accuracy against thinking tokens."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from s1jax.errors import UserError

_BUDGET, _WAITS = re.compile(r"cut at (\d+)"), re.compile(r".* x(\d+)")
_FIELDS = ("name", "label", "accuracy", "interval", "thinking_tokens", "problems")


def find(folder: pathlib.Path, fingerprint: str) -> dict[str, Any] | None:
    """Returns the curve of the checkpoint in `folder`; None if no evaluation of it is found.

    Looks for results.json in the folder, in its workdir, and in their folders. Of several evaluations it takes the one
    with most runs.

    Args:
      folder: of the checkpoint; `WORKDIR/checkpoints/STEP` if a training run has written it.
      fingerprint: of the checkpoint; an evaluation of other weights does not count.

    Raises:
      UserError: a results.json is damaged.
    """
    curves = []
    for file in _files(folder):
        try:
            results = json.loads(file.read_bytes())
            if isinstance(results, Mapping) and results.get("weights") == fingerprint and "runs" in results:
                curves.append(of_results(results))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{file} is damaged; remove it, or evaluate again.") from None
    return max((curve for curve in curves if curve["runs"]), key=lambda curve: len(curve["runs"]), default=None)


def of_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the curve of a results.json: its runs with thinking cut at growing budgets, or with more and more waits.

    Paths and the machine, which results.json has as well, are left out: clients have no need of them.
    """
    controls = results["asked"]["controls"]
    return {
        "object": "curve",
        "model": results["model"],
        "task": results["task"],
        "problems": results["problems"],
        "wait": results["asked"]["wait"],
        "temperature": controls["temperature"],
        "runs": [
            {
                **{name: run[name] for name in _FIELDS},
                "families": [name for name in ("budgets", "waits") if name in run["families"]],
                "thinking_token_budget": _number(_BUDGET, run["name"], controls["max_thinking_tokens"]),
                "num_waits": _number(_WAITS, run["name"], 0),
            }
            for run in results["runs"]
            if {"budgets", "waits"} & set(run["families"])
        ],
    }


def _number(pattern: re.Pattern[str], name: str, missing: int) -> int:
    found = pattern.fullmatch(name)
    return int(found[1]) if found else missing


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The results.json that may be of the checkpoint."""
    places = [folder, folder.parent.parent] if folder.parent.name == "checkpoints" else [folder]
    for place in places:
        yield from (file for file in (place / "results.json", *sorted(place.glob("*/results.json"))) if file.is_file())
