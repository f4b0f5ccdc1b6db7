"""The loop over a given source of batches: meters, checkpoints, resumption, preemption."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from s1jax.checkpoint import store
from s1jax.config import experiment as experiment_lib
from s1jax.config import schema
from s1jax.config.experiment import Experiment, OptimizerConfig
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.parallel import processes, sharding
from s1jax.training import metrics as record_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib

# Settings that may differ when a run is resumed: they change neither its order nor, but for rounding, its numbers.
_HOW = ("accumulation", "attention", "loss_chunk", "mlp_parts", "remat")  # what fits other machines
_LENGTH = ("train.epochs", "train.steps")  # may grow: the run goes on from its state, see `train`
_FREE = ("mesh", "checkpoint", "cost", *(f"train.{name}" for name in _HOW))


class Source(Protocol):
    """Where batches come from; step s always gives the same batch."""

    num_steps: int

    def iterate(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields this process's rows of the batches of steps start, start + 1, ..., num_steps - 1."""
        ...

    def names(self, step: int) -> list[str]:
        """Where the sequences of a step came from."""
        ...


@dataclasses.dataclass(frozen=True)
class Watcher:
    """What a run tells and asks while it goes.

    Attributes:
      on_phase: called with what happens next, in words.
      on_step: called with a step's record, the line of metrics.jsonl, one step late.
      should_stop: asked after every step, with its number from 1 on; True, which all processes have to be told at the
        same step, ends the run there with a checkpoint.
      on_note: called with a sentence on a run that goes on: lines that metrics.jsonl lacks, a schedule that changed.
      on_resume: called once with the step of the checkpoint that the run goes on from, if there is one.
    """

    on_phase: Callable[[str], None] = lambda words: None
    on_step: Callable[[dict[str, Any]], None] = lambda record: None
    should_stop: Callable[[int], bool] = lambda step: False
    on_note: Callable[[str], None] = lambda sentence: None
    on_resume: Callable[[int], None] = lambda step: None


@contextlib.contextmanager
def claim_workdir(workdir: pathlib.Path, experiment: Experiment, rows: str = "") -> Iterator[None]:
    """Holds the folder of a run for a block: makes it with its config.json, or checks that the run in it is this one.

    Process 0 keeps a lock on WORKDIR/.lock, which the system takes back when the process ends, however it does; where
    the file system has no locks, nothing keeps a second run out.

    Args:
      workdir: the folder.
      experiment: the settings.
      rows: digest of the rows that are trained on, kept in rows.sha256; empty: they follow from the settings.

    Raises:
      UserError: where another process trains in the folder, where it holds a run of other settings (says which) or of
        other rows or is a file, or where another process than the first doesn't see it, has it at another path or has
        other settings.
    """
    first = jax.process_index() == 0
    with contextlib.ExitStack() as held:
        processes.together(lambda: _claim(workdir, experiment, rows, held) if first else None)
        processes.together(lambda: None if first else _claim(workdir, experiment, rows, held))
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


def _claim(workdir: pathlib.Path, experiment: Experiment, rows: str, held: contextlib.ExitStack) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; choose another --workdir.")
    if jax.process_index() == 0:
        _lock(workdir, held)
    _check_settings(workdir, experiment)
    if rows:
        _check_rows(workdir, experiment.data.source, rows)


def _lock(workdir: pathlib.Path, held: contextlib.ExitStack) -> None:
    """Makes the folder and keeps other processes out of it until `held` is closed."""
    with store.disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = held.enter_context(files.append(workdir / ".lock"))
    if not files.take(file):
        raise UserError(
            f"{workdir} is being trained in by another process; wait for it, stop it, or choose another --workdir."
        )


def _check_rows(workdir: pathlib.Path, source: str, rows: str) -> None:
    """Compares the digest of the rows with that of the run; one that has none yet gets it."""
    file = workdir / "rows.sha256"
    there = file.read_text().strip() if file.exists() else ""
    if there == rows:
        return
    if there and _begun(workdir):
        raise UserError(
            f"the rows of data.source {source} changed since the run in {workdir} began, or how they are encoded; "
            f"choose another --workdir, or remove {file} to go on with rows you mended."
        )
    if jax.process_index() == 0:
        with store.disk_errors(file):
            files.write_text(file, rows + "\n")


def _begun(workdir: pathlib.Path) -> bool:
    return bool(store.finished_steps(workdir)) or (workdir / "metrics.jsonl").exists()


def _check_settings(workdir: pathlib.Path, experiment: Experiment) -> None:
    file = workdir / "config.json"
    here = schema.to_dict(experiment)
    if file.exists():
        try:
            there = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{file} is no JSON; remove it if the run in {workdir} is not needed.") from error
        old, new = _leaves(there), _leaves(here)
        # A setting that this run was begun without, by an earlier version, had its default's meaning.
        added = {name: value for name, value in _leaves(experiment_lib.defaults()).items() if name in new}
        old = added | old
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


def _shorter(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the leaves of two configurations say by themselves that the new run takes fewer steps."""
    epochs, steps = ((settings.get(name) or 0 for settings in (old, new)) for name in _LENGTH)
    (old_epochs, new_epochs), (old_steps, new_steps) = epochs, steps
    if bool(old_steps) != bool(new_steps):  # how long an epoch is decides, see `_prolonged`
        return False
    return new_steps < old_steps if old_steps else new_epochs < old_epochs


def _prolonged(workdir: pathlib.Path, start: int, optimizer: OptimizerConfig, num_steps: int) -> str:
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


def _write_length(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Puts the length of a run that was prolonged into its config.json."""
    file = workdir / "config.json"
    there = json.loads(file.read_text())
    length = {"epochs": experiment.train.epochs, "steps": experiment.train.steps}
    if length.items() <= there["train"].items():
        return
    there["train"] |= length
    with store.disk_errors(file):
        files.write_text(file, json.dumps(there, indent=2) + "\n")


def train(
    experiment: Experiment,
    about: store.Metadata,
    make_params: Callable[[], Any],
    batches: Source,
    workdir: pathlib.Path,
    mesh: Mesh,
    watcher: Watcher,
    began: float | None = None,
    profile: range = range(0),
) -> dict[str, Any]:
    """Trains from step 0, or from the newest checkpoint in `workdir`, to the end of `batches`.

    A run may get more steps than it had, finished or not. It goes on from its newest state, and its batches stay those
    of (seed, step), but the learning rate follows the schedule of the new length from there on. With a constant one and
    no warm-up the result is that of a run which had this length from the beginning; with others it is not, because the
    earlier steps followed the old schedule. (The Trainer of transformers does the same.)

    Args:
      experiment: the settings; `claim_workdir` has accepted them for `workdir`.
      about: what is saved beside the weights.
      make_params: gives the weights to start from; not called when the run is resumed.
      batches: the data.
      workdir: gets metrics.jsonl, TensorBoard events and checkpoints/.
      mesh: of `mesh_lib.make_mesh`.
      watcher: told what happens.
      began: `time.monotonic()` when the process started, from where its wall-clock counts; None: now.
      profile: steps, counted from 1, of which an XProf trace is written to `workdir`/profile; those that were taken
        before a resumption are left out.

    Returns:
      the summary: JSON values.

    Raises:
      UserError: a loss that is not finite (names the step and its rows; the last checkpoint stays), a full disk, a
        damaged checkpoint, sizes that do not divide, a `profile` behind the last step.
    """
    began = time.monotonic() if began is None else began
    num_steps = batches.num_steps
    if profile and profile[0] > num_steps:
        raise UserError(f"step {profile[0]} cannot be profiled: the run has {num_steps}; choose an earlier one.")
    tx = optimizer_lib.make(experiment.optimizer, about.config, num_steps)
    abstract = step_lib.abstract_state(about.config, tx, mesh, experiment.train.param_dtype)
    step_fn = step_lib.make_step(about.config, experiment.train, experiment.optimizer, num_steps, tx, mesh, abstract)
    settings = experiment.checkpoint
    with (
        store.Checkpointer(workdir, settings.keep, about) as checkpointer,
        record_lib.RunLog(workdir, experiment, about.config, mesh, began) as log,
        contextlib.ExitStack() as trace,
    ):
        # As process 0 sees it: a folder on a network may show later elsewhere what was written last.
        start = int(multihost_utils.broadcast_one_to_all(np.int32(checkpointer.newest_step() or 0)))
        if start:
            watcher.on_resume(start)
            watcher.on_phase(f"loading the checkpoint of step {start}")
            rest = {"step": abstract.step, "opt_state": abstract.opt_state}
            with _earlier(workdir, start):
                note = processes.together(lambda: _prolonged(workdir, start, experiment.optimizer, num_steps))
                params, rest = checkpointer.restore(start, abstract.params, rest)
            state = step_lib.TrainState(rest["step"], params, rest["opt_state"])
        else:
            watcher.on_phase("placing the weights")
            state = step_lib.init_state(make_params(), tx, abstract)
            note = ""
        missing = processes.together(lambda: log.begin(start, num_steps))
        for sentence in filter(None, (note, missing)):
            watcher.on_note(sentence)
        if jax.process_index() == 0:
            _write_length(workdir, experiment)

        def save(state: step_lib.TrainState, step: int) -> None:
            log.sync()
            progress = {"step": step, "num_steps": num_steps, "loss": log.last.get("loss")}
            checkpointer.save(step, state.params, {"step": state.step, "opt_state": state.opt_state}, progress)

        def settle(step: int, metrics: dict[str, jax.Array], places: int) -> None:
            values = {name: array.item() for name, array in jax.device_get(metrics).items()}
            if not values["finite"]:
                names = batches.names(step)
                shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
                checkpointer.wait()
                saved = checkpointer.newest_step()
                kept = f"the checkpoint of step {saved} is kept" if saved else "nothing had been saved yet"
                raise processes.SharedError(
                    f"step {step + 1}: loss {values['loss']} or gradient norm {values['grad_norm']} is not finite on "
                    f"the rows {shown}; {kept}. Look at them, or lower optimizer.learning_rate in another --workdir."
                )
            watcher.on_step(log.write(step + 1, values, places))

        if start < num_steps:
            watcher.on_phase("reading the first batch and compiling the step")
        pending: tuple[int, dict[str, jax.Array], int] | None = None
        profile = range(max(profile.start, start + 1), min(profile.stop, num_steps + 1))
        compiled = None
        stopped = False
        step = start
        for step, batch in zip(range(start, num_steps), batches.iterate(start), strict=False):
            arrays = sharding.put_batch(batch, mesh)
            if compiled is None:
                compiled = step_lib.compile_for(jax.default_backend(), step_fn.lower(state, arrays))
                watcher.on_phase("training")
                log.start_clock()
            if step + 1 in profile[:1]:
                if pending is not None:
                    settle(*pending)
                    pending = None
                trace.enter_context(jax.profiler.trace(workdir / "profile"))
                log.start_clock()
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                state, metrics = compiled(state, arrays)
            # The host waits for the step before this one, so the devices always have one step queued.
            if pending is not None:
                settle(*pending)
            pending = (step, metrics, arrays["tokens"].size)
            stopped = watcher.should_stop(step + 1) and step + 1 < num_steps
            due = stopped or step + 1 == num_steps or (settings.every and (step + 1) % settings.every == 0)
            profiled = step + 1 in profile[-1:]
            if due or profiled:
                settle(*pending)
                pending = None
                if profiled or stopped:
                    with store.disk_errors(workdir / "profile"):
                        trace.close()
                if due:
                    save(state, step + 1)
                log.start_clock()
            if stopped:
                break
        watcher.on_phase("finishing the checkpoint")
        checkpointer.wait()
        return log.summary(stopped)


@contextlib.contextmanager
def _earlier(workdir: pathlib.Path, step: int) -> Iterator[None]:
    """Adds to an error with the checkpoint of a step what to do where there is an earlier one."""
    try:
        yield
    except UserError as error:
        before = [other for other in store.finished_steps(workdir) if other < step]
        if not before:
            raise
        folder = store.step_folder(workdir, step)
        sentence = f"{str(error).rstrip('.')}; remove {folder} to go on from step {before[-1]}."
        raise type(error)(sentence) from error


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
