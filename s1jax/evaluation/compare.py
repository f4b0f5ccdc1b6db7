"""Draws the curves of several evaluations on one picture, from their results.json."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from s1jax.errors import UserError
from s1jax.evaluation import metrics, plot, results
from s1jax.evaluation.plot import Evaluation
from s1jax.io import paths as paths_lib


def draw(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], title: str = "") -> None:
    """Draws the curves of evaluations, see `s1jax.evaluation.plot.draw`, and writes the picture.

    Args:
      paths: of files results.json, or of their folders; at least one, at most eight.
      out: PNG, SVG or PDF file to write; its folder is made if needed.
      title: above the curves; by default the task.

    Raises:
      UserError: `out` has another end, or a file of results is wrong, see `read`.
      MissingPackageError: matplotlib is not installed.
    """
    file = paths_lib.local(out, "out")
    plot.check_name(file)
    evaluations, task = read(paths)
    figure = plot.draw(evaluations, title or task)
    file.parent.mkdir(parents=True, exist_ok=True)
    plot.save(figure, file)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """What a plot needs of a results.json."""

    file: pathlib.Path
    runs: list[metrics.Run]
    wait: str
    model: str
    checkpoint: str
    task: str


def read(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[Evaluation], str]:
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
    if not paths:
        raise UserError("no results are given; name at least one results.json of an evaluation, or its folder.")
    found = [_load(paths_lib.local(path, "results")) for path in paths]
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
        model = found.get("model") or results.model_name(asked["checkpoint"])
        task = found.get("task") or f"{asked['task']}, {found['problems']} problems"
        loaded = _Loaded(file, runs, asked["wait"], model, asked["checkpoint"], task)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not the results.json of an evaluation ({type(error).__name__}: {error}); give another file."
        ) from None
    if not runs:
        raise UserError(f"{file} has no runs; give the results of an evaluation that has some.")
    return loaded
