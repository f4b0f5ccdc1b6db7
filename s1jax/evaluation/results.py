"""Reads the folder that an evaluation has written."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s1jax.config.schema import shown
from s1jax.errors import UserError
from s1jax.evaluation import metrics
from s1jax.evaluation.plot import Evaluation


def read(
    out: pathlib.Path,
    run: str,
    num_problems: int,
    journal: Iterable[Mapping[str, Any]],
    now: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns results and samples of an evaluation that are in its folder already; empty if it has none.

    Args:
      out: the folder.
      run: fingerprint of the evaluation.
      num_problems: of its task.
      journal: samples of an evaluation that has no results yet.
      now: what the evaluation will write into its results, as far as it is known, to name what differs.

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


def key(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What distinguishes a sample of an evaluation from all others."""
    return row["run"], row["problem"], row["attempt"]


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
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


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    asked = results.get("asked")
    asked = dict(asked) if isinstance(asked, Mapping) else {}
    controls = asked.pop("controls", {})
    asked.pop("checkpoint", None)
    # The dtype in use: the setting may be empty.
    found = asked | (dict(controls) if isinstance(controls, Mapping) else {}) | {"dtype": results.get("dtype")}
    return json.loads(json.dumps(found))  # tuples become lists, as in the file


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """What a plot needs of a results.json."""

    file: pathlib.Path
    runs: list[metrics.Run]
    wait: str
    model: str
    checkpoint: str
    task: str


def for_plot(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Evaluation], str]:
    """Reads results for a picture.

    An evaluation is called by its checkpoint's name. Two with the same name are called by the checkpoint's path, or
    else by their folder. If the tasks differ, the task follows.

    Args:
      paths: of files results.json, or of their folders; at least one.

    Returns:
      the evaluations in this order, and the title of the picture.

    Raises:
      UserError: a file does not exist, is not the results of an evaluation, or is named twice.
    """
    found = [_load(pathlib.Path(path)) for path in paths]
    for real, count in collections.Counter(os.path.realpath(each.file) for each in found).items():
        if count > 1:
            raise UserError(f"{real} is given {count} times; give it once.")
    tasks = {each.task for each in found}
    if len(found) == 1:
        (one,) = found
        return [Evaluation(one.runs, one.wait)], f"{one.model} on {one.task}"
    for names in (
        [each.model for each in found],
        [each.checkpoint for each in found],
        [os.fspath(each.file.parent) for each in found],
        [os.fspath(each.file) for each in found],
    ):
        if len(tasks) > 1:
            names = [f"{name} on {each.task}" for name, each in zip(names, found, strict=True)]
        if len(set(names)) == len(names):
            break
    evaluations = [Evaluation(each.runs, each.wait, name) for name, each in zip(names, found, strict=True)]
    return evaluations, tasks.pop() if len(tasks) == 1 else f"{len(tasks)} tasks"


def _load(path: pathlib.Path) -> _Loaded:
    file = path / "results.json" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file} does not exist; give the results.json of an evaluation, or its folder.")
    try:
        found = json.loads(file.read_bytes())
        asked, runs = found["asked"], [metrics.from_record(run) for run in found["runs"]]
        # Results of earlier versions name neither model nor task.
        model = found.get("model") or model_name(asked["checkpoint"])
        task = found.get("task") or f"{asked['task']}, {found['problems']} problems"
        loaded = _Loaded(file, runs, asked["wait"], model, asked["checkpoint"], task)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not the results.json of an evaluation ({type(error).__name__}: {error}); give another file."
        ) from None
    if not runs:
        raise UserError(f"{file} has no runs; give the results of an evaluation that has some.")
    return loaded


def model_name(checkpoint: str) -> str:
    """What a picture calls a checkpoint: `runs/s1` is s1, `package:NAME` is NAME."""
    return pathlib.Path(checkpoint).name.removeprefix("package:")
