"""The call `s1jax.train`: trains an experiment in a folder, from the beginning or from its newest checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from s1jax.config import presets
from s1jax.config.experiment import Experiment
from s1jax.io import paths
from s1jax.training import loop, prepare
from s1jax.training import workdir as workdir_lib
from s1jax.training.callbacks import Callbacks
from s1jax.training.metrics import Summary


def train(
    experiment: Experiment | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    callbacks: Callbacks | None = None,
    *,
    start_time: float | None = None,
    profile: range = range(0),
) -> Summary:
    """Trains a model and returns its summary metrics; prints nothing.

        summary = s1jax.train(
            {"init_from": "package:countdown_base", "chat": "s1_plain", "data": {"source": "rows.jsonl"}}, "runs/own"
        )
        model = s1jax.load_model("runs/own")

    The same call again resumes from the newest checkpoint in the workdir; the settings must be the same. A larger
    `train.epochs` or `train.steps` makes the run longer, finished or not. On several hosts every process calls
    `jax.distributed.initialize` first and then makes the same call, with a workdir that all of them see.

    Args:
      experiment: the settings, or nested mappings of them as in a file of configs/; missing settings use defaults
        (`s1jax.config.experiment.Experiment`). `ConfigDict.to_dict()` gives such mappings.
      workdir: gets config.json, metrics.jsonl, tensorboard/ and checkpoints/STEP. It is itself a checkpoint (its newest
        one) wherever a checkpoint is asked for. One process at a time trains in it.
      callbacks: functions that are called while the run goes; None calls none.
      start_time: `time.monotonic()` where the run's wall-clock time begins; None: now.
      profile: steps, counted from 1. An XProf trace of them is written to `workdir`/profile.

    Returns:
      steps, first and last loss, tokens, seconds, cost: JSON values.

    Raises:
      UserError: for settings, rows or a folder that are wrong, a loss that is not finite, a full disk. Finished
        checkpoints stay.
    """
    callbacks = callbacks or Callbacks()
    settings = experiment if isinstance(experiment, Experiment) else presets.experiment(experiment)
    path = paths.local(workdir, "--workdir")
    paths.local(settings.init_from, "config.init_from")
    paths.local(settings.distil.teacher, "config.distil.teacher")
    with contextlib.ExitStack() as held:
        prepared = held.enter_context(prepare.prepare(settings))
        teacher = "" if prepared.teacher is None else prepared.teacher.digest
        held.enter_context(workdir_lib.claim(path, settings, prepared.batches.digest, teacher, prepared.base))
        for note in prepared.notes:
            callbacks.on_note(note)
        return loop.run(prepared, path, callbacks, start_time=start_time, profile=profile)
