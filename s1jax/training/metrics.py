"""The record of every step of a run, with its meters: metrics.jsonl and the trackers that draw it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import IO, Any, NotRequired, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh

from s1jax import perf
from s1jax.checkpoint import store
from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.model import adapters
from s1jax.training import trackers
from s1jax.training.callbacks import Record

# What the summary reads of a line; of the latter a backend may have none.
_NUMBERS = (
    "loss", "tokens", "supervised_tokens", "padding", "seconds", "wall_seconds", "dollars", "dollars_to_go",
)  # fmt: skip
PARTS = ("cross_entropy", "distillation")  # of the loss, where it has any
SAMPLED = ("sampled_ended", "sampled_tokens")  # of on-policy steps
ROUTERS = ("router_aux_loss", "router_max_load", "router_dead_experts")  # of models with experts
_MAYBE = ("mfu", "peak_memory_bytes")


class Summary(TypedDict):
    """Figures of a whole run, resumed parts included; only the first two where no line of metrics is left.

    Attributes:
      steps: that were taken.
      stopped: a callback ended the run before its last step.
      trained_params: number of weights that are trained: all, or those of the adapters.
      first_loss: of the first step.
      last_loss: of the last step.
      validation_loss: the newest one, with data.validation.
      best_validation_loss: the lowest one, with checkpoint.best.
      best_checkpoint: folder of the checkpoint that has it.
      tokens: that were fed, padding left out.
      supervised_tokens: that carried loss.
      padding: mean share of the batches' places that held no token.
      seconds: sum over the steps alone.
      step_seconds: percentiles of the steps, by the names p50, p90 and p99.
      wall_seconds: of every process that ran the run, one after the other, see `RunLog`.
      goodput: the share of `wall_seconds` that went into steps whose result was kept.
      tokens_per_second: tokens / seconds.
      supervised_tokens_per_second: supervised_tokens / seconds.
      median_mfu: model FLOPs utilisation; None where the device's peak is not known.
      peak_memory_bytes: of the fullest device of this process; None where the backend does not say.
      dollars: for the devices over `wall_seconds`.
      dollars_to_go: for the steps that are left.
    """

    steps: int
    stopped: bool
    trained_params: NotRequired[int]
    first_loss: NotRequired[float]
    last_loss: NotRequired[float]
    validation_loss: NotRequired[float]
    best_validation_loss: NotRequired[float]
    best_checkpoint: NotRequired[str]
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
    """metrics.jsonl of a run and its trackers, written by process 0.

    A line has the metrics of `step.make_step`, tokens per second and MFU, and:

      cross_entropy, distillation: the two parts of the loss; only with a teacher, whose FLOPs are in the MFU.
      sampled_ended, sampled_tokens: see `s1jax.training.on_policy.OnPolicy.complete`; only of steps whose rows the
        student sampled. The sampling is in the time of the step, and not in its FLOPs.
      router_aux_loss, router_max_load, router_dead_experts: see `step.make_step`; only of models with experts.
      padding: share of the batch's places that hold no token.
      peak_memory_bytes: of the fullest of this process's devices; None if the backend does not report it.
      seconds: of this step alone; validation, checkpoints and compilation count for no step.
      wall_seconds: of the run so far. It adds up the processes that ran it one after the other, each from its start,
        with start-up, compilation, checkpoints and steps whose state was lost. The time between two processes, and what
        a process did after its last line, are not known and left out.
      dollars: for the devices over `wall_seconds`.
      dollars_to_go: for the steps that are left, at the mean pace of this process, checkpoints included.
      validation_loss: only in the lines of steps after which it was measured.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        experiment: Experiment,
        config: ModelConfig,
        mesh: Mesh,
        start_time: float,
        teacher: ModelConfig | None = None,
    ):
        """Opens nothing yet; `start_time` is the `time.monotonic()` of this process's start."""
        self._workdir, self._experiment, self._config, self._teacher = workdir, experiment, config, teacher
        lora = experiment.lora
        self._adapters = adapters.num_params(config, lora, active=True) if lora.rank else 0
        self._trained = adapters.num_params(config, lora) if lora.rank else config.num_params
        self._price = experiment.cost.per_device_hour
        self._devices = mesh.size
        self._kind = mesh.devices.flat[0].device_kind
        self._local_devices = mesh.local_devices
        self._first = jax.process_index() == 0
        self._records: list[Record] = []
        self._start = self._num_steps = 0
        self._file: IO[str] | None = None
        self._trackers: list[trackers.Tracker] = []
        self._start_time = self._clock = start_time
        self._first_step_start: float | None = None
        self._earlier_seconds = self._earlier_dollars = 0.0  # of the processes before this one

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: Any) -> None:
        with files.named(self._workdir), contextlib.ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.close)
            if self._file is not None:
                closing.callback(self._file.close)

    def begin(self, start: int, num_steps: int) -> str:
        """Reads what is there; lines of steps after `start`, which a killed run wrote, go when the first comes again.

        Not before: a process that ends until then leaves the next one what it has to know of the time that was spent.

        Returns:
          a sentence on steps up to `start` that have no line; empty where all have one.

        Raises:
          UserError: for a line that is not one of a run (named), or whose step does not follow the one before; W&B
            does not let the run begin.
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
                raise UserError(f"{path}:{number} is not a line of a run's metrics; remove that line.")
            if record["step"] <= before:
                raise UserError(
                    f"{path}:{number} is of step {record['step']}, after a line of step {before}; remove the wrong one."
                )
            before = record["step"]
            # Of removed lines as well: that time was spent.
            self._earlier_seconds, self._earlier_dollars = record["wall_seconds"], record["dollars"]
            if before <= start:
                self._records.append(record)
        if self._experiment.log.wandb and start < num_steps:
            self._trackers.append(trackers.WeightsAndBiases(self._workdir, self._experiment))
        return self._missing(path)

    def _missing(self, path: pathlib.Path) -> str:
        missing = sorted(set(range(1, self._start + 1)) - {record["step"] for record in self._records})
        if not missing:
            return ""
        steps = f"{len(missing)} of the {self._start} steps that the checkpoint has, from step {missing[0]} on"
        return f"{path} has no line of {steps}; the run goes on, and its totals leave these out."

    def _open(self, path: pathlib.Path) -> IO[str]:
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in self._records[:-1]))
        if self._experiment.log.tensorboard:
            with contextlib.suppress(ImportError):  # which `trackers.check` has said
                self._trackers.append(trackers.TensorBoard(self._workdir / "tensorboard", self._start))
        return path.open("a", buffering=1)

    def sync(self) -> None:
        """Brings the lines so far to the disk, as before a checkpoint that counts on them."""
        if self._file is not None:
            with store.disk_errors(self._workdir / "metrics.jsonl"):
                self._file.flush()
                os.fsync(self._file.fileno())

    @property
    def last(self) -> Record:
        return self._records[-1] if self._records else {}

    def start_clock(self) -> None:
        """Starts the time of the next step: before the first one, and after work between two steps."""
        self._clock = time.monotonic()
        if self._first_step_start is None:
            self._first_step_start = self._clock

    def write(
        self, step: int, values: dict[str, Any], places: int, validate: Callable[[], float] | None = None
    ) -> Record:
        """Adds the line of a step that has just ended and returns it.

        Args:
          step: counted from 1.
          values: metrics of `step.make_step`.
          places: rows of the whole batch times their length.
          validate: measures the validation loss; None: it is not measured after this step.
        """
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        assert self._first_step_start is not None
        pace = (now - self._first_step_start) / (step - self._start)
        named = ((name.removeprefix("pairs"), value) for name, value in values.items() if name.startswith("pairs"))
        pairs = {int(name.lstrip("_") or 0): value for name, value in named}  # by window
        flops = perf.train_flops(self._config, values["tokens"], pairs, self._teacher, self._adapters)
        record: Record = {
            "step": step,
            "loss": values["loss"],
            **{name: values[name] for name in (*PARTS, *SAMPLED, *ROUTERS) if name in values},
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
            "wall_seconds": self._earlier_seconds + now - self._start_time,
            "dollars": self._earlier_dollars + self._cost(now - self._start_time),
            "dollars_to_go": self._cost(pace * (self._num_steps - step)),
        }
        if validate is not None:
            record["validation_loss"] = validate()
        self._records.append(record)
        if self._first:
            path = self._workdir / "metrics.jsonl"
            with store.disk_errors(path):
                if self._file is None:
                    self._file = self._open(path)
                self._file.write(json.dumps(record) + "\n")
                for tracker in self._trackers:
                    tracker.add(record)
        return record

    def summary(self, stopped: bool) -> Summary:
        """Figures of the whole run, resumed parts included."""
        if not self._records:
            return {"steps": self._start, "stopped": stopped}
        each = [record["seconds"] for record in self._records]
        seconds = sum(each)
        here = time.monotonic() - self._start_time
        supervised = sum(record["supervised_tokens"] for record in self._records)
        tokens = sum(record["tokens"] for record in self._records)
        shares = [record["mfu"] for record in self._records if record["mfu"] is not None]
        validated = [record["validation_loss"] for record in self._records if "validation_loss" in record]
        summary: Summary = {
            "steps": self.last["step"],
            "stopped": stopped,
            "trained_params": self._trained,
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
        if validated:
            summary["validation_loss"] = validated[-1]
        return summary

    def _cost(self, seconds: float) -> float:
        return perf.dollars(seconds, self._devices, self._price)


def _parse(line: bytes) -> Record | None:
    """The record of a line; None where it is not one that `RunLog.write` wrote."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 1:
        return None
    if not all(isinstance(record.get(name), int | float) for name in _NUMBERS):
        return None
    if not isinstance(record.get("validation_loss", 0.0), int | float):
        return None
    return record if all(isinstance(record.get(name, ""), int | float | None) for name in _MAYBE) else None
