"""What a training run reports while it goes, as functions that the caller may give."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]  # a line of metrics.jsonl: JSON values by name, see `s1jax.training.metrics.RunLog`


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls; each does nothing by default.

    In a run of several processes each of them calls its own. An exception that a callback raises ends the run, and
    finished checkpoints stay.

    Attributes:
      on_note: called with a sentence that a person should read: rows that were dropped, settings that are not used,
        a learning rate that changes because the run became longer.
      on_start: called once with (start, num_steps): the step of the checkpoint that the run resumes from, 0 for a new
        run, and the steps of the whole run.
      on_phase: called with what happens next, in a few words, such as "reading the first batch and compiling the step".
      on_step: called with the record of a step, one step late. The device is at work on the next step by then.
      on_checkpoint: called with (step, folder) when a checkpoint has been handed to the writer. It is complete when the
        next one is handed over, or when `train` returns.
      should_stop: called after every step with its number, from 1 on. True ends the run after this step with a
        checkpoint. All processes must give the same answer for the same step.
    """

    on_note: Callable[[str], object] = lambda sentence: None
    on_start: Callable[[int, int], object] = lambda start, num_steps: None
    on_phase: Callable[[str], object] = lambda words: None
    on_step: Callable[[Record], object] = lambda record: None
    on_checkpoint: Callable[[int, pathlib.Path], object] = lambda step, folder: None
    should_stop: Callable[[int], bool] = lambda step: False
