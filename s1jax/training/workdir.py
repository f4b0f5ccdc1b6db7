"""The checks of a training run's folder: it is free, and the run in it is the one that is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from s1jax.checkpoint import store
from s1jax.config import experiment as experiment_lib
from s1jax.config import schema
from s1jax.config.experiment import Experiment, OptimizerConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.parallel import processes
from s1jax.training import optimizer as optimizer_lib

# Settings that may differ when a run is resumed: they change neither its order nor, but for rounding, its numbers.
_HOW = ("accumulation", "attention", "loss_chunk", "mlp_parts", "remat", "validate_every")  # what fits other machines
_LENGTH = ("train.epochs", "train.steps")  # may grow: the run is prolonged, see `s1jax.training.loop.run`
# Earlier versions named the packaged tokenizer by its place in a checkout.
_RENAMED = {"tokenizer": {"s1jax/assets/countdown_tokenizer": "package:countdown_tokenizer"}}
_FREE = ("mesh", "checkpoint", "cost", "log", *(f"train.{name}" for name in _HOW))


@contextlib.contextmanager
def claim(
    workdir: pathlib.Path, experiment: Experiment, rows: str = "", teacher: str = "", base: str = ""
) -> Iterator[None]:
    """Reserves the folder of a run for a block: makes it with its config.json, or checks that it holds this run.

    Process 0 keeps a lock on WORKDIR/.lock, which the system releases when the process ends in any way. On a file
    system without locks nothing keeps a second run out.

    Args:
      workdir: the folder.
      experiment: the settings.
      rows: digest of the rows that are trained on, kept in rows.sha256; empty: they follow from the settings.
      teacher: digest of the checkpoint of a distillation's teacher, kept in teacher.sha256; empty: there is none.
      base: digest of the checkpoint that adapters are trained for, kept in base.sha256; empty: all weights are
        trained.

    Raises:
      UserError: if another process trains in the folder; if it is a file, or holds a run of other settings (named) or
        other rows or another teacher or base; if a process other than the first does not see it, has it at another path
        or has other settings.
    """
    first = jax.process_index() == 0
    with contextlib.ExitStack() as held:
        kept = {"rows.sha256": rows, "teacher.sha256": teacher, "base.sha256": base}
        processes.together(lambda: _take(workdir, experiment, kept, held) if first else None)
        processes.together(lambda: None if first else _take(workdir, experiment, kept, held))
        own = np.frombuffer(hashlib.sha256(os.fsencode(workdir.absolute())).digest()[:8], np.uint32)
        same = bool((multihost_utils.broadcast_one_to_all(own) == own).all())
        processes.together(lambda: _check_place(workdir, same))
        yield


def _check_place(workdir: pathlib.Path, same: bool) -> None:
    # Orbax refuses another path at the first save only, after the steps before it.
    if not same:
        raise UserError(
            f"--workdir is {workdir.absolute()} here and another path in process 0, but a checkpoint is written to"
            " one path; give an absolute path that all processes have, or run them in folders of the same path."
        )


def _take(workdir: pathlib.Path, experiment: Experiment, kept: dict[str, str], held: contextlib.ExitStack) -> None:
    """Reserves the folder for this process, and compares its settings and digests: `kept`, by file."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; choose another --workdir.")
    if jax.process_index() == 0:
        _lock(workdir, held)
    _check_settings(workdir, experiment)
    begun = f"another checkpoint than when the run in {workdir} began"
    changed = {
        "rows.sha256": (
            f"the rows of data.source {experiment.data.source} changed since the run in {workdir} began, or how they"
            " are encoded",
            "to go on with rows you mended",
        ),
        "teacher.sha256": (f"distil.teacher {experiment.distil.teacher} is {begun}", "to go on with this one"),
        "base.sha256": (f"init_from {experiment.init_from} is {begun}, which its adapters belong to", ""),
    }
    for name, digest in kept.items():
        if digest:
            _check_digest(workdir, name, digest, *changed[name])


def _lock(workdir: pathlib.Path, held: contextlib.ExitStack) -> None:
    """Makes the folder and keeps other processes out of it until `held` is closed."""
    with store.disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = held.enter_context(files.append(workdir / ".lock"))
    if not files.take(file):
        raise UserError(
            f"{workdir} is being trained in by another process; wait for it, stop it, or choose another --workdir."
        )


def _check_digest(workdir: pathlib.Path, name: str, digest: str, what: str, remedy: str) -> None:
    """Compares a digest with the one that the run keeps in the file `name`; a run that has none yet gets it."""
    file = workdir / name
    there = file.read_text().strip() if file.exists() else ""
    if there == digest:
        return
    if there and _begun(workdir):
        raise UserError(f"{what}; choose another --workdir{f', or remove {file} {remedy}' if remedy else ''}.")
    if jax.process_index() == 0:
        with store.disk_errors(file):
            files.write_text(file, digest + "\n")


def _begun(workdir: pathlib.Path) -> bool:
    return bool(store.finished_steps(workdir)) or (workdir / "metrics.jsonl").exists()


def _check_settings(workdir: pathlib.Path, experiment: Experiment) -> None:
    file = workdir / "config.json"
    here = schema.to_dict(experiment)
    if file.exists():
        try:
            there = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{file} is not JSON; remove it if the run in {workdir} is not needed.") from error
        old, new = (_leaves(_flat_model(settings, f"{file}: model")) for settings in (there, here))
        # A setting that this run was begun without, by an earlier version, had its default's meaning.
        added = {name: value for name, value in _leaves(experiment_lib.defaults()).items() if name in new}
        old = added | old
        old, new = (
            {name: _RENAMED.get(name, {}).get(value, value) for name, value in settings.items()}
            for settings in (old, new)
        )
        free = {*_FREE} if _shorter(old, new) else {*_FREE, *_LENGTH}
        differ = [
            f"{name} is {_show(old.get(name))} there and {_show(new.get(name))} here"
            for name in sorted(set(old) | set(new))
            if not {name, name.split(".")[0]} & free and old.get(name) != new.get(name)
        ]
        if differ:
            more = f" (and {len(differ) - 3} more)" if len(differ) > 3 else ""
            remedy = "" if _begun(workdir) else "; or remove that one, which has not taken a step"
            raise UserError(
                f"{workdir} holds another run: {'; '.join(differ[:3])}{more}. Choose another --workdir or its settings"
                f"{remedy}."
            )
        return
    if jax.process_index():
        raise UserError(f"{file}, which process 0 has, is not there; all processes have to see the same --workdir.")
    if _begun(workdir):
        raise UserError(f"{workdir} holds a run without its config.json; choose another --workdir.")
    with store.disk_errors(file):
        files.write_text(file, json.dumps(here, indent=2) + "\n")


def _flat_model(settings: Any, where: str) -> Any:
    """The settings of a run with its model in the flat form, if it has one: earlier versions wrote that.

    Raises:
      UserError: the model cannot be read; begins with `where`.
    """
    model = settings.get("model") if isinstance(settings, Mapping) else None
    if not isinstance(model, Mapping):
        return settings
    config = schema.from_dict(ModelConfig, model, where)
    if not config.has_flat_form:
        return settings
    flat = config.flat()
    scaling = flat["rope_scaling"]
    return {**settings, "model": {**flat, "rope_scaling": scaling and schema.to_dict(scaling)}}


def _shorter(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the leaves of two configurations say by themselves that the new run takes fewer steps."""
    epochs, steps = ((settings.get(name) or 0 for settings in (old, new)) for name in _LENGTH)
    (old_epochs, new_epochs), (old_steps, new_steps) = epochs, steps
    if bool(old_steps) != bool(new_steps):  # how long an epoch is decides, see `prolonged`
        return False
    return new_steps < old_steps if old_steps else new_epochs < old_epochs


def prolonged(workdir: pathlib.Path, start: int, optimizer: OptimizerConfig, num_steps: int) -> str:
    """A sentence where the run takes more steps than when the checkpoint of step `start` was saved; else empty.

    Raises:
      UserError: where it takes fewer.
    """
    before = store.load_metadata(store.step_folder(workdir, start)).provenance.get("num_steps")
    if not isinstance(before, int) or before == num_steps:
        return ""
    if before > num_steps:
        raise UserError(
            f"the run in {workdir} takes {before} steps and cannot be shortened to {num_steps}; give the train.epochs "
            "and train.steps that it has, or larger ones, or choose another --workdir."
        )
    last = float(optimizer_lib.schedule(optimizer, before)(jnp.asarray(start - 1)))
    following = float(optimizer_lib.schedule(optimizer, num_steps)(jnp.asarray(start)))
    return (
        f"the run is prolonged: the {optimizer.schedule} schedule now ends at step {num_steps} (was {before}), and the "
        f"learning rate goes from {last:.3g} in step {start} to {following:.3g} in step {start + 1}."
    )


def write_length(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Puts the length of a run that was prolonged into its config.json."""
    file = workdir / "config.json"
    there = json.loads(file.read_text())
    length = {"epochs": experiment.train.epochs, "steps": experiment.train.steps}
    if length.items() <= there["train"].items():
        return
    there["train"] |= length
    with store.disk_errors(file):
        files.write_text(file, json.dumps(there, indent=2) + "\n")


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b.c": leaf}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, child in tree.items():
        found.update(_leaves(child, f"{prefix}.{name}" if prefix else name))
    return found


def _show(value: Any) -> str:
    return "unset" if value is None else repr(value)
