"""The training loop over prepared batches: steps, validation, checkpoints, resumption, preemption."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from s1jax.checkpoint import store
from s1jax.data.packing import Batch
from s1jax.errors import UserError
from s1jax.model.decoder import Params
from s1jax.parallel import processes, sharding
from s1jax.training import metrics as metrics_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from s1jax.training import workdir as workdir_lib
from s1jax.training.callbacks import Callbacks
from s1jax.training.prepare import Prepared
from s1jax.training.validation import Validation


def run(
    prepared: Prepared,
    workdir: pathlib.Path,
    callbacks: Callbacks,
    *,
    start_time: float | None = None,
    profile: range = range(0),
) -> metrics_lib.Summary:
    """Trains from step 0, or from the newest checkpoint in `workdir`, to the end of the batches.

    A run may get more steps than it had, finished or not. It resumes from its newest state, and its batches stay those
    of (seed, step), but from there the learning rate follows the schedule of the new length. With a constant rate and
    no warm-up the result is that of a run which had this length from the beginning. With others it is not, because the
    earlier steps followed the old schedule. The Trainer of transformers does the same.

    Args:
      prepared: the run; `workdir.claim` has accepted its settings for `workdir`.
      workdir: gets metrics.jsonl, TensorBoard events and checkpoints/.
      callbacks: called while the run goes.
      start_time: `time.monotonic()` when the process started, where its wall-clock time begins; None: now.
      profile: steps, counted from 1. An XProf trace of them is written to `workdir`/profile, without steps that were
        taken before the run was resumed.

    Returns:
      the summary of the whole run, resumed parts included.

    Raises:
      UserError: a loss that is not finite (names the step and its rows; the last checkpoint stays), a full disk, a
        damaged checkpoint, sizes that do not divide, a `profile` after the last step.
    """
    start_time = time.monotonic() if start_time is None else start_time
    num_steps = prepared.batches.num_steps
    if profile and profile[0] > num_steps:
        raise UserError(f"step {profile[0]} cannot be profiled: the run has {num_steps}; choose an earlier one.")
    experiment, metadata = prepared.experiment, prepared.metadata
    teacher = None if prepared.teacher is None else prepared.teacher.spec.config
    with (
        store.Checkpointer(workdir, experiment.checkpoint.keep, metadata) as checkpointer,
        metrics_lib.RunLog(workdir, experiment, metadata.config, prepared.mesh, start_time, teacher) as log,
        _Trace(workdir / "profile", profile) as trace,
    ):
        loop = _Loop(prepared, workdir, callbacks, checkpointer, log, trace)
        stopped = loop.steps(loop.begin())
        callbacks.on_phase("finishing the checkpoint")
        checkpointer.wait()
        return loop.with_best(log.summary(stopped))


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that the devices may still be at work on: its index from 0, its metrics and the places of its batch.

    `extra`: metrics that are known already.
    """

    step: int
    metrics: dict[str, jax.Array]
    places: int
    extra: dict[str, float]


class _Best(NamedTuple):
    """The lowest validation loss of a run, and the step that has it."""

    loss: float
    step: int


class _Trace:
    """An XProf trace of some steps of a run."""

    def __init__(self, folder: pathlib.Path, steps: range):
        self._folder, self._steps = folder, steps
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def limit(self, first: int, last: int) -> None:
        """Leaves out steps before `first` and after `last`."""
        self._steps = range(max(self._steps.start, first), min(self._steps.stop, last + 1))

    def begins_at(self, step: int) -> bool:
        return step in self._steps[:1]

    def ends_at(self, step: int) -> bool:
        return step in self._steps[-1:]

    def start(self) -> None:
        self._open.enter_context(jax.profiler.trace(self._folder))

    def stop(self) -> None:
        with store.disk_errors(self._folder):
            self._open.close()


class _Loop:
    """One process's part of a run: the state on its devices, the compiled step and what is written down of it."""

    def __init__(
        self,
        prepared: Prepared,
        workdir: pathlib.Path,
        callbacks: Callbacks,
        checkpointer: store.Checkpointer,
        log: metrics_lib.RunLog,
        trace: _Trace,
    ):
        self._prepared, self._workdir, self._callbacks = prepared, workdir, callbacks
        self._checkpointer, self._log, self._trace = checkpointer, log, trace
        self._batches, self._num_steps = prepared.batches, prepared.batches.num_steps
        experiment, config, mesh = prepared.experiment, prepared.metadata.config, prepared.mesh
        lora = experiment.lora
        self._tx = optimizer_lib.make(experiment.optimizer, config, self._num_steps, lora)
        self._abstract = step_lib.abstract_state(
            config, self._tx, mesh, experiment.train.param_dtype, lora, experiment.optimizer.offload
        )
        teacher = prepared.teacher
        # By whether the student sampled the rows of the step.
        losses = {False: prepared.loss} if teacher is None else {False: teacher.loss, True: teacher.on_policy_loss}
        self._programs = {
            sampled: step_lib.make_step(
                config, experiment.train, experiment.optimizer, self._num_steps, self._tx, mesh, self._abstract, loss,
                None if teacher is None else teacher.spec, lora,
            )
            for sampled, loss in losses.items()
        }  # fmt: skip
        self._validation: Validation | None = None
        if prepared.validation is not None:
            self._validation = Validation(
                config, experiment.train, mesh, prepared.validation, self._abstract.params, lora=lora
            )
        self._best: _Best | None = None
        self._compiled: dict[bool, jax.stages.Compiled] = {}
        self._pending: _Pending | None = None
        self._state: step_lib.TrainState
        self._frozen: tuple[step_lib.Frozen, ...] = ()  # weights of the teacher and of the base, if there is one
        self._base: Params | None = None

    def begin(self) -> int:
        """Loads the newest checkpoint or places the first weights; returns the steps that were taken before."""
        # As process 0 sees it: a folder on a network may show later elsewhere what was written last.
        start = int(multihost_utils.broadcast_one_to_all(np.int32(self._checkpointer.newest_step() or 0)))
        self._callbacks.on_start(start, self._num_steps)
        if start:
            self._callbacks.on_phase(f"loading the checkpoint of step {start}")
            note = self._restore(start)
        else:
            self._callbacks.on_phase("placing the weights")
            self._state = step_lib.init_state(self._prepared.make_params(), self._tx, self._abstract)
            note = ""
        if start < self._num_steps:
            self._load_frozen()
        missing = processes.together(lambda: self._log.begin(start, self._num_steps))
        for sentence in filter(None, (note, missing)):
            self._callbacks.on_note(sentence)
        if self._validation is not None and self._prepared.experiment.checkpoint.best:
            self._best = self._find_best(start)
        if jax.process_index() == 0:
            workdir_lib.write_length(self._workdir, self._prepared.experiment)
        self._trace.limit(start + 1, self._num_steps)
        return start

    def _load_frozen(self) -> None:
        """Loads the weights that are never changed: of the teacher, and those that adapters belong to."""
        teacher = None
        if self._prepared.teacher is not None:
            self._callbacks.on_phase("loading the teacher")
            teacher = self._prepared.teacher.make_params()
        if self._prepared.make_base is not None:
            self._callbacks.on_phase("loading the frozen weights")
            self._base = self._prepared.make_base()
        if teacher is not None or self._base is not None:
            self._frozen = (step_lib.Frozen(teacher, self._base),)

    def _restore(self, start: int) -> str:
        """Loads the state of a step; returns a sentence where the run takes more steps than it had."""
        optimizer, abstract = self._prepared.experiment.optimizer, self._abstract
        with _earlier(self._workdir, start):
            note = processes.together(lambda: workdir_lib.prolonged(self._workdir, start, optimizer, self._num_steps))
            rest = {"step": abstract.step, "opt_state": abstract.opt_state}
            params, rest = self._checkpointer.restore(start, abstract.params, rest)
        self._state = step_lib.TrainState(rest["step"], params, rest["opt_state"])
        return note

    def _find_best(self, start: int) -> _Best | None:
        """The checkpoint of lowest validation loss among those that an earlier process saved, as process 0 sees it."""
        found = []
        for step in store.finished_steps(self._workdir) if jax.process_index() == 0 else []:
            try:
                loss = store.load_metadata(store.step_folder(self._workdir, step)).provenance.get("validation_loss")
            except UserError as error:
                self._callbacks.on_note(f"{error} Its validation loss is not known.")
                continue
            if isinstance(loss, float) and step <= start:
                found.append(_Best(loss, step))
        best = min(found, default=_Best(0.0, 0))
        step = int(multihost_utils.broadcast_one_to_all(np.int32(best.step)))
        loss = float(multihost_utils.broadcast_one_to_all(np.float32(best.loss)))
        return _Best(loss, step) if step else None

    def with_best(self, summary: metrics_lib.Summary) -> metrics_lib.Summary:
        """The summary with the best checkpoint, if there is one."""
        if self._best is not None:
            summary["best_validation_loss"] = self._best.loss
            summary["best_checkpoint"] = str(store.step_folder(self._workdir, self._best.step))
        return summary

    def steps(self, start: int) -> bool:
        """Takes all steps after `start`; returns whether a callback stopped the run before the last one."""
        if start < self._num_steps:
            self._callbacks.on_phase("reading the first batch and compiling the step")
        for index, batch in zip(range(start, self._num_steps), self._batches.iterate(start), strict=False):
            step = index + 1
            batch, extra = self._completed(index, batch)
            arrays = sharding.put_batch(batch, self._prepared.mesh)
            compiled = self._compile(arrays, bool(extra))
            if self._trace.begins_at(step):
                self._log_step()
                self._trace.start()
                self._log.start_clock()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                self._state, metrics = compiled(self._state, arrays, *self._frozen)
            self._log_step()  # waits for the step before this one, so the devices always have one step queued
            self._pending = _Pending(index, metrics, arrays["tokens"].size, extra)
            stopped = self._callbacks.should_stop(step) and step < self._num_steps
            self._between(step, stopped)
            if stopped:
                return True
        return False

    def _completed(self, index: int, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """The batch of a step, with its metrics where the student samples its rows."""
        sampler = self._prepared.on_policy
        if sampler is None or not sampler.is_due(index):
            return batch, {}
        self._log_step()  # so that the time of sampling is that of this step
        return sampler.complete(index, self._state.params, batch)

    def _compile(self, arrays: dict[str, jax.Array], sampled: bool) -> jax.stages.Compiled:
        if sampled not in self._compiled:
            self._log_step()  # whose time does not include compilation
            lowered = self._programs[sampled].lower(self._state, arrays, *self._frozen)
            self._compiled[sampled] = step_lib.compile_for(jax.default_backend(), lowered)
            self._callbacks.on_phase("training")
            self._log.start_clock()
        return self._compiled[sampled]

    def _between(self, step: int, stopped: bool) -> None:
        """Does what is due between two steps: ends a trace, measures the validation loss, saves a checkpoint."""
        experiment, last = self._prepared.experiment, step == self._num_steps
        due = stopped or _is_due(step, experiment.checkpoint.every, last)
        validate = self._validation is not None and _is_due(step, experiment.train.validate_every, last)
        profiled = self._trace.ends_at(step)
        if not due and not profiled and not validate:
            return
        self._log_step(validate)
        if validate and experiment.checkpoint.best:
            loss = self._log.last["validation_loss"]
            if self._best is None or loss < self._best.loss:
                self._best, due = _Best(loss, step), True
        if profiled or stopped:
            self._trace.stop()
        if due:
            self._save(step)
        self._log.start_clock()

    def _save(self, step: int) -> None:
        self._log.sync()
        progress = {"step": step, "num_steps": self._num_steps, "loss": self._log.last.get("loss")}
        if "validation_loss" in self._log.last:
            progress["validation_loss"] = self._log.last["validation_loss"]
        rest = {"step": self._state.step, "opt_state": self._state.opt_state}
        best = None if self._best is None else self._best.step
        self._checkpointer.save(step, self._state.params, rest, progress, protect=best)
        self._callbacks.on_checkpoint(step, store.step_folder(self._workdir, step))

    def _log_step(self, validate: bool = False) -> None:
        """Waits for the pending step, if there is one, and writes its line, with the validation loss if asked for."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        values = {name: array.item() for name, array in jax.device_get(pending.metrics).items()} | pending.extra
        if not values["finite"]:
            self._raise_not_finite(pending.step, values)
        measure = (lambda: self._validate(pending.step + 1)) if validate else None
        self._callbacks.on_step(self._log.write(pending.step + 1, values, pending.places, measure))

    def _validate(self, step: int) -> float:
        assert self._validation is not None
        self._callbacks.on_phase("validating")
        loss = self._validation(self._state.params, self._base)
        if not math.isfinite(loss):
            raise processes.SharedError(
                f"step {step}: the validation loss is {loss}; look at the rows of data.validation, or lower"
                " optimizer.learning_rate in another --workdir. Finished checkpoints are kept."
            )
        self._callbacks.on_phase("training")
        return loss

    def _raise_not_finite(self, step: int, values: dict[str, float]) -> None:
        names = self._batches.names(step)
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        self._checkpointer.wait()
        saved = self._checkpointer.newest_step()
        kept = f"the checkpoint of step {saved} is kept" if saved else "nothing had been saved yet"
        raise processes.SharedError(
            f"step {step + 1}: loss {values['loss']} or gradient norm {values['grad_norm']} is not finite on "
            f"the rows {shown}; {kept}. Look at them, or lower optimizer.learning_rate in another --workdir."
        )


def _is_due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


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
