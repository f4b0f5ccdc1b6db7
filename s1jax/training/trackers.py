"""Trackers: writers of a run's numbers for TensorBoard or Weights & Biases, which draw them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Protocol

from s1jax.checkpoint import store
from s1jax.config import schema
from s1jax.config.experiment import Experiment, LogConfig
from s1jax.errors import MissingPackageError, UserError
from s1jax.io import files
from s1jax.training.callbacks import Record

_FLUSH_EVERY = 10.0  # seconds between writes of the TensorBoard events


class Tracker(Protocol):
    """Takes the records of a run one after the other."""

    def add(self, record: Record) -> None:
        """Adds the numbers of a step's record, see `named`."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def check(config: LogConfig) -> list[str]:
    """Returns a note if a tracker that is on by default is not installed.

    Raises:
      UserError: if one that was asked for is not installed.
    """
    if config.wandb and not _is_installed("wandb"):
        raise MissingPackageError(f"config.log.wandb={config.wandb}", "wandb", "wandb")
    if config.tensorboard and not _is_installed("tensorboardX"):
        return ["tensorboardX is not installed, so the run has no TensorBoard events; metrics.jsonl has every number."]
    return []


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # of a module that was put into sys.modules by hand
        return True


def named(record: Record) -> dict[str, float]:
    """Numbers of a record by the names that curves have: train/NAME, and validation/loss."""
    names = {"validation_loss": "validation/loss"}
    return {
        names.get(name, f"train/{name}"): value
        for name, value in record.items()
        if name != "step" and value is not None
    }


class TensorBoard:
    """A TensorBoard event file, written in this thread so that a full disk is noticed.

    tensorboardX's own SummaryWriter hands events to a thread, and waits forever if that thread has died.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        """Opens a new file; TensorBoard drops what earlier files have of steps after `start`.

        Raises:
          ImportError: where tensorboardX is not installed.
        """
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{start}")
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._flushed = time.monotonic()

    def add(self, record: Record) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in named(record).items()]
        event = self._event(wall_time=time.time(), step=record["step"], summary=self._summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the workdir; a resumed run continues under the same id.

    Curves are drawn over `train/global_step`, as by the Trainer of transformers: W&B's own step never goes back, and a
    run that resumes from a checkpoint repeats the steps that were lost.
    """

    def __init__(self, workdir: pathlib.Path, experiment: Experiment):
        """Begins the run, or resumes it.

        Raises:
          UserError: where W&B does not let it begin, for example without a login, or with a broken installation.
        """
        project = experiment.log.wandb
        try:
            import wandb

            self._run = wandb.init(
                project=project,
                name=workdir.absolute().name,
                dir=str(workdir),
                id=_run_id(workdir, project),
                resume="allow",
                config=schema.to_dict(experiment),
            )
            self._run.define_metric("train/global_step")
            self._run.define_metric("*", step_metric="train/global_step")
        except Exception as error:  # errors of several libraries
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"config.log.wandb={project}: wandb could not begin the run ({type(error).__name__}: {reason}); run"
                " `wandb login`, set WANDB_MODE=offline, or leave the setting empty."
            ) from error

    def add(self, record: Record) -> None:
        self._run.log({**named(record), "train/global_step": record["step"]})

    def close(self) -> None:
        self._run.finish()


def _run_id(workdir: pathlib.Path, project: str) -> str:
    """The id of the run in a project, which WORKDIR/wandb.json keeps for the processes that resume it."""
    file = workdir / "wandb.json"
    known: Mapping[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        try:
            known = json.loads(file.read_bytes())
            if not isinstance(known, dict):
                raise ValueError(type(known).__name__)
        except ValueError as error:
            raise UserError(f"{file} is not the JSON of project -> id of a run ({error}); remove it.") from error
    if project not in known:
        known = {**known, project: secrets.token_hex(4)}
        with store.disk_errors(file):
            files.write_text(file, json.dumps(known) + "\n")
    return known[project]
