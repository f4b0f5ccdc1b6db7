"""Trains a model: `python -m launch.train --config=configs/NAME.py --workdir=DIR [--config.a.b=v ...]`.

The same command again resumes from the newest checkpoint in DIR. With larger train.epochs or train.steps it prolongs
the run, finished or not. DIR gets config.json, rows.sha256 (of the encoded rows), metrics.jsonl, tensorboard/ and
checkpoints/STEP. DIR is itself a checkpoint to every other command; one run at a time uses it. --profile=3:6 writes an
XProf trace of steps 3 to 6 to DIR/profile. --config.data.validation=0.05 holds rows out and measures the loss on them.

On several hosts the same command runs in every process, with a DIR that all of them see. s1jax/cli/processes.py says
how processes find each other; on a machine without a cluster, give --coordinator=HOST:PORT, --num_processes=N and
--process_id=I. A run may be resumed with another number of processes or devices, or another mesh.

Exit codes, the same in all processes except where only one of them fails:

    0    the run is finished and its checkpoint is on the disk
    2    the input is wrong; the message says how
    75   another process was lost, at most a minute ago, or did not come within five; the same command resumes from the
         newest checkpoint
    143  a SIGTERM to any process stopped all of them at the same step with a checkpoint; the same command resumes
    1    anything else, after a traceback
"""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import re
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from s1jax.cli import processes, terminal
from s1jax.config import presets
from s1jax.config.experiment import Experiment
from s1jax.errors import UserError
from s1jax.io import paths

if TYPE_CHECKING:
    from s1jax.cli import progress
    from s1jax.training.callbacks import Record
    from s1jax.training.metrics import Summary

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "An experiment of s1jax, by name (countdown_s1), or a file; single settings as --config.a.b=v.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same folder and settings resume it.")
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "Step (from 1), or FIRST:LAST, both included: an XProf trace of these steps is written to WORKDIR/profile.",
)
_STOPPING = "SIGTERM: the run stops after the step under way, with a checkpoint; the same command goes on from it."


def main() -> int:
    start_time = time.monotonic()
    if _CONFIG.value is None:
        raise UserError("--config is missing; give a file of configs/, for example --config=configs/countdown_s1.py.")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; name the folder that shall hold the run.")
    if not isinstance(_CONFIG.value, ConfigDict):
        kind = type(_CONFIG.value).__name__
        raise UserError(f"get_config of --config's file returns a {kind}; it must be an ml_collections.ConfigDict.")
    profile = range(0) if _PROFILE.value is None else _steps(_PROFILE.value)
    experiment = presets.experiment(_CONFIG.value.to_dict())
    workdir = paths.local(_WORKDIR.value, "--workdir")
    paths.local(experiment.init_from, "config.init_from")
    return processes.run(lambda: _train(experiment, workdir, start_time, profile), stops=True)


def _train(experiment: Experiment, workdir: pathlib.Path, start_time: float, profile: range) -> int:
    # Imported only now, so that a mistyped setting is answered at once.
    import jax

    from s1jax.training.callbacks import Callbacks
    from s1jax.training.run import train

    first = jax.process_index() == 0
    with _Display(first) as display:
        callbacks = Callbacks(
            on_note=display.note,
            on_start=display.start,
            on_phase=display.phase,
            on_step=display.step,
            should_stop=display.should_stop,
        )
        summary = train(experiment, workdir, callbacks, start_time=start_time, profile=profile)
    if first:
        _print_summary(summary, workdir)
    return processes.STOPPED if summary["stopped"] else 0


class _Display:
    """What the terminal shows of a run, and SIGTERM, which ends it."""

    def __init__(self, shown: bool):
        self._shown, self._held = shown, contextlib.ExitStack()
        self._bar: progress.Bar
        self._asked: Callable[[int], bool]
        self._validation = self._sampled = ""

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def note(self, sentence: str) -> None:
        if self._shown:
            terminal.note(sentence)

    def start(self, start: int, num_steps: int) -> None:
        from s1jax.cli import progress

        self._bar = self._held.enter_context(progress.Bar("starting", num_steps, shown=self._shown))
        self._asked = processes.stop_asked(lambda: self._bar.say(_STOPPING))
        if start:
            self._bar.resume(start)

    def phase(self, words: str) -> None:
        self._bar.phase(words)

    def step(self, record: Record) -> None:
        if "validation_loss" in record:
            self._validation = f"  validation loss {record['validation_loss']:.4f}"
        if "sampled_ended" in record:
            self._sampled = f"  sampled {record['sampled_tokens']:,.0f} tokens, {record['sampled_ended']:.0%} ended"
        detail = f"loss {record['loss']:.4f}{self._validation}{self._sampled}"
        detail += f"  {record['tokens_per_second']:,.0f} tokens/s"
        if record["dollars"]:
            detail += f"  {record['dollars']:,.2f} USD so far, {record['dollars_to_go']:,.2f} to go"
        self._bar.update(record["step"], detail)

    def should_stop(self, step: int) -> bool:
        return self._asked(step)


def _steps(text: str) -> range:
    """Steps of --profile."""
    found = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile={text} is neither a step nor FIRST:LAST; give for example --profile=3:6.")
    return range(first, last + 1)


def _print_summary(summary: Summary, workdir: pathlib.Path) -> None:
    verb = "stopped at" if summary["stopped"] else "finished"
    if "seconds" not in summary:  # nothing was left to do, and metrics.jsonl is gone
        print(f"{verb} step {summary['steps']}; the checkpoint is {workdir}")
        return
    print(f"{verb} step {summary['steps']} in {summary['seconds']:.0f} s; the checkpoint is {workdir}")
    print(f"  trained weights   {summary['trained_params'] / 1e6:,.2f} M")
    print(f"  loss              {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}")
    if "validation_loss" in summary:
        print(f"  validation loss   {summary['validation_loss']:.4f}")
    if "best_checkpoint" in summary:
        print(
            f"  best checkpoint   {summary['best_checkpoint']} (validation loss {summary['best_validation_loss']:.4f})"
        )
    print(f"  tokens            {summary['tokens']:,}, of them supervised {summary['supervised_tokens']:,}")
    print(
        f"  tokens per second {summary['tokens_per_second']:,.0f}, supervised "
        f"{summary['supervised_tokens_per_second']:,.0f}; {summary['padding']:.1%} of the places are padding"
    )
    times = ", ".join(f"{name} {seconds:.3f}" for name, seconds in summary["step_seconds"].items())
    print(f"  seconds per step  {times}")
    print(f"  goodput           {summary['goodput']:.1%} of {summary['wall_seconds']:,.0f} s went into steps")
    if summary["median_mfu"] is not None:
        print(f"  MFU (median)      {summary['median_mfu']:.1%}")
    if summary["peak_memory_bytes"] is not None:
        print(f"  device memory     {summary['peak_memory_bytes'] / 1e9:.2f} GB at the peak")
    if summary["dollars"]:
        print(f"  cost              {summary['dollars']:,.2f} USD so far, {summary['dollars_to_go']:,.2f} to go")
    if (workdir / "tensorboard").is_dir():  # tensorboardX writes the files; their viewer is another package
        viewer = "" if importlib.util.find_spec("tensorboard") else " (python -m pip install tensorboard)"
        print(f"  curves            tensorboard --logdir={shlex.quote(str(workdir))}{viewer}")
