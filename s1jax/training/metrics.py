"""What a run writes down of its steps: metrics.jsonl and TensorBoard events, with the meters' figures."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh

from s1jax import perf
from s1jax.checkpoint import store
from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.io import files

# What the summary reads of a line; of the latter a backend may have none.
_NUMBERS = (
    "loss", "tokens", "supervised_tokens", "padding", "seconds", "wall_seconds", "dollars", "dollars_to_go",
)  # fmt: skip
_MAYBE = ("mfu", "peak_memory_bytes")
_FLUSH_EVERY = 10.0  # seconds between writes of the TensorBoard events


class Summary(TypedDict):
    """Figures of a whole run, resumed parts included; only the first two where no line of metrics is left.

    Attributes:
      steps: that were taken.
      stopped: a callback ended the run before its last step.
      first_loss: of the first step.
      last_loss: of the last step.
      tokens: that were fed, padding left out.
      supervised_tokens: that carried loss.
      padding: mean share of the batches' places that held no token.
      seconds: sum over the steps alone.
      step_seconds: percentiles of the steps, by the names p50, p90 and p99.
      wall_seconds: of every process that ran the run, one after the other, see `RunLog`.
      goodput: the share of `wall_seconds` that went into steps whose result was kept.
      tokens_per_second: tokens / seconds.
      supervised_tokens_per_second: likewise.
      median_mfu: model FLOPs utilisation; None where the device's peak is not known.
      peak_memory_bytes: of the fullest device of this process; None where the backend does not say.
      dollars: for the devices over `wall_seconds`.
      dollars_to_go: for the steps that are left.
    """

    steps: int
    stopped: bool
    first_loss: NotRequired[float]
    last_loss: NotRequired[float]
    tokens: NotRequired[int]
    supervised_tokens: NotRequired[int]
    padding: NotRequired[float]
    seconds: NotRequired[float]
    step_seconds: NotRequired[dict[str, float]]
    wall_seconds: NotRequired[float]
    goodput: NotRequired[float]
    tokens_per_second: NotRequired[float]
    supervised_tokens_per_second: NotRequired[float]
    median_mfu: NotRequired[float | None]
    peak_memory_bytes: NotRequired[int | None]
    dollars: NotRequired[float]
    dollars_to_go: NotRequired[float]


class RunLog:
    """metrics.jsonl and TensorBoard events of a run, written by process 0.

    A line has what the step computed, and: `padding`, the share of the batch's places that hold no token;
    `peak_memory_bytes`, on the fullest of this process's devices, None where the backend does not tell; `seconds`, of
    this step alone; `wall_seconds`, of the run up to here, that is of every process that ran it one after the other,
    each from its start, with start-up, compilation, checkpoints and steps whose state was lost; `dollars`, for the
    devices over that time; `dollars_to_go`, for the steps that are left at this process's pace since its first step,
    checkpoints included. What an earlier process did after its last line is not known, nor is the time between two.
    """

    def __init__(self, workdir: pathlib.Path, experiment: Experiment, config: ModelConfig, mesh: Mesh, began: float):
        """Opens nothing yet; `began` is the `time.monotonic()` of this process's start."""
        self._workdir, self._config = workdir, config
        self._price = experiment.cost.per_device_hour
        self._devices = mesh.size
        self._kind = mesh.devices.flat[0].device_kind
        self._local_devices = mesh.local_devices
        self._first = jax.process_index() == 0
        self._records: list[dict[str, Any]] = []
        self._start = self._num_steps = 0
        self._file: Any = None
        self._events: Any = None
        self._began = self._clock = began
        self._first_step_began: float | None = None
        self._earlier_seconds = self._earlier_dollars = 0.0  # of the processes before this one

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: Any) -> None:
        with files.named(self._workdir):
            for writer in (self._file, self._events):
                if writer is not None:
                    writer.close()

    def begin(self, start: int, num_steps: int) -> str:
        """Reads what is there; lines of steps after `start`, which a killed run wrote, go when the first comes again.

        Not before: a process that ends until then leaves the next one what it has to know of the time that was spent.

        Returns:
          a sentence on steps up to `start` that have no line; empty where all have one.

        Raises:
          UserError: names a line that is no line of a run, or whose step does not follow the one before.
        """
        self._start, self._num_steps = start, num_steps
        if not self._first:
            return ""
        path = self._workdir / "metrics.jsonl"
        lines = path.read_bytes().rstrip(b"\n").split(b"\n") if path.exists() else []
        before = 0
        for number, line in enumerate(lines, 1):
            record = _parse(line)
            if record is None:
                if number == len(lines):  # of a killed run
                    break
                raise UserError(f"{path}:{number} is no line of a run's metrics; remove that line.")
            if record["step"] <= before:
                raise UserError(
                    f"{path}:{number} is of step {record['step']}, after a line of step {before}; remove the wrong one."
                )
            before = record["step"]
            # Of removed lines as well: that time was spent.
            self._earlier_seconds, self._earlier_dollars = record["wall_seconds"], record["dollars"]
            if before <= start:
                self._records.append(record)
        return self._missing(path)

    def _missing(self, path: pathlib.Path) -> str:
        missing = sorted(set(range(1, self._start + 1)) - {record["step"] for record in self._records})
        if not missing:
            return ""
        steps = f"{len(missing)} of the {self._start} steps that the checkpoint has, from step {missing[0]} on"
        return f"{path} has no line of {steps}; the run goes on, and its totals leave these out."

    def _open(self, path: pathlib.Path) -> None:
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in self._records[:-1]))
        self._file = path.open("a", buffering=1)
        with contextlib.suppress(ImportError):  # metrics.jsonl has the same numbers
            self._events = _Events(self._workdir / "tensorboard", self._start)

    def sync(self) -> None:
        """Brings the lines so far to the disk, as before a checkpoint that counts on them."""
        if self._file is not None:
            with store.disk_errors(self._workdir / "metrics.jsonl"):
                self._file.flush()
                os.fsync(self._file.fileno())

    @property
    def last(self) -> dict[str, Any]:
        return self._records[-1] if self._records else {}

    def start_clock(self) -> None:
        """To be called before the first step, and after whatever comes between two steps and belongs to neither."""
        self._clock = time.monotonic()
        if self._first_step_began is None:
            self._first_step_began = self._clock

    def write(self, step: int, values: dict[str, Any], places: int) -> dict[str, Any]:
        """Adds the line of a step that has just ended and returns it.

        Args:
          step: counted from 1.
          values: metrics of `step.make_step`.
          places: rows of the whole batch times their length.
        """
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        assert self._first_step_began is not None
        pace = (now - self._first_step_began) / (step - self._start)
        flops = perf.train_flops(self._config, values["tokens"], values["pairs"])
        record = {
            "step": step,
            "loss": values["loss"],
            "learning_rate": values["learning_rate"],
            "grad_norm": values["grad_norm"],
            "supervised_tokens": values["supervised"],
            "tokens": values["tokens"],
            "padding": 1 - values["tokens"] / places,
            "tokens_per_second": values["tokens"] / seconds,
            "supervised_tokens_per_second": values["supervised"] / seconds,
            "mfu": perf.mfu(flops, seconds, self._kind, self._devices),
            "peak_memory_bytes": perf.peak_memory(self._local_devices),
            "seconds": seconds,
            "wall_seconds": self._earlier_seconds + now - self._began,
            "dollars": self._earlier_dollars + self._cost(now - self._began),
            "dollars_to_go": self._cost(pace * (self._num_steps - step)),
        }
        self._records.append(record)
        if self._first:
            path = self._workdir / "metrics.jsonl"
            with store.disk_errors(path):
                if self._file is None:
                    self._open(path)
                self._file.write(json.dumps(record) + "\n")
                if self._events is not None:
                    self._events.add(record)
        return record

    def summary(self, stopped: bool) -> Summary:
        """Figures of the whole run, resumed parts included."""
        if not self._records:
            return {"steps": self._start, "stopped": stopped}
        each = [record["seconds"] for record in self._records]
        seconds = sum(each)
        here = time.monotonic() - self._began
        supervised = sum(record["supervised_tokens"] for record in self._records)
        tokens = sum(record["tokens"] for record in self._records)
        shares = [record["mfu"] for record in self._records if record["mfu"] is not None]
        return {
            "steps": self.last["step"],
            "stopped": stopped,
            "first_loss": self._records[0]["loss"],
            "last_loss": self.last["loss"],
            "tokens": tokens,
            "supervised_tokens": supervised,
            "padding": float(np.mean([record["padding"] for record in self._records])),
            "seconds": seconds,
            "step_seconds": {f"p{p}": float(np.percentile(each, p)) for p in (50, 90, 99)},
            "wall_seconds": self._earlier_seconds + here,
            "goodput": seconds / (self._earlier_seconds + here),
            "tokens_per_second": tokens / seconds,
            "supervised_tokens_per_second": supervised / seconds,
            "median_mfu": float(np.median(shares)) if shares else None,
            "peak_memory_bytes": self.last["peak_memory_bytes"],
            "dollars": self._earlier_dollars + self._cost(here),
            "dollars_to_go": self.last["dollars_to_go"],
        }

    def _cost(self, seconds: float) -> float:
        return perf.dollars(seconds, self._devices, self._price)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is not one that `RunLog.write` wrote."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 1:
        return None
    if not all(isinstance(record.get(name), int | float) for name in _NUMBERS):
        return None
    return record if all(isinstance(record.get(name, ""), int | float | None) for name in _MAYBE) else None


class _Events:
    """A TensorBoard event file, written in this thread so that a full disk is noticed.

    tensorboardX's own SummaryWriter hands events to a thread, and waits for ever where that thread has died.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        """Opens a new file; TensorBoard drops what earlier files have of steps after `start`."""
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{start}")
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._flushed = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        """Adds every number of a line of metrics.jsonl under train/NAME."""
        values = [
            self._summary.Value(tag=f"train/{name}", simple_value=value)
            for name, value in record.items()
            if name != "step" and value is not None
        ]
        event = self._event(wall_time=time.time(), step=record["step"], summary=self._summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()
