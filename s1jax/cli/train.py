"""Trains a model: `python -m launch.train --config=configs/NAME.py --workdir=DIR [--config.a.b=v ...]`.

The same command run again goes on from the newest checkpoint in DIR; with larger train.epochs or train.steps it
prolongs the run, finished or not. DIR gets config.json, rows.sha256 (of the encoded rows), metrics.jsonl, tensorboard/
and checkpoints/STEP, and is itself a checkpoint to every other launcher; one run at a time has it. --profile=3:6 writes
an XProf trace of steps 3 to 6 to DIR/profile.

On several hosts the same command runs in every process, with a DIR that all of them see. Processes find each other as
s1jax/cli/processes.py says; on a machine without a cluster, give --coordinator=HOST:PORT, --num_processes=N and
--process_id=I. Another number of processes or devices, or another mesh, goes on from the same checkpoint.

Exit codes, the same in all processes except where only one of them fails:

    0    the run is finished and its checkpoint is on the disk
    2    the input is wrong, in a way that the message says
    75   another process was lost, at most a minute ago, or did not come within five; the same command goes on from the
         newest checkpoint
    143  a SIGTERM to any process stopped all of them at the same step with a checkpoint; the same command goes on
    1    anything else, after a traceback
"""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import re
import shlex
import time
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from s1jax.cli import processes, terminal
from s1jax.config import experiment as experiment_lib
from s1jax.config import presets, schema
from s1jax.config.experiment import Experiment
from s1jax.errors import UserError
from s1jax.io import paths

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "An experiment of s1jax, by name (countdown_s1), or a file; single settings as --config.a.b=v.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same folder and settings resume it.")
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "Step (from 1) or FIRST:LAST, both included, of which an XProf trace is written to WORKDIR/profile.",
)
_STOPPING = "SIGTERM: the run stops after the step under way, with a checkpoint; the same command goes on from it."


def main() -> int:
    began = time.monotonic()
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
    return processes.run(lambda: _train(experiment, workdir, began, profile))


def _train(experiment: Experiment, workdir: pathlib.Path, began: float, profile: range) -> int:
    # Imported only now, so that a mistyped setting is answered at once.
    import jax

    from s1jax.checkpoint import store
    from s1jax.cli import progress
    from s1jax.parallel import ops as parallel_ops
    from s1jax.parallel import sharding
    from s1jax.parallel.processes import together
    from s1jax.training import loop

    first = jax.process_index() == 0
    with contextlib.ExitStack() as held:
        start = _start(experiment, held)
        mesh, about, batches, notes = together(lambda: _prepare(experiment, start))
        held.enter_context(loop.claim_workdir(workdir, experiment, batches.digest))
        experiment, fallback = parallel_ops.choose_attention(experiment, about.config, mesh, jax.default_backend())
        if fallback:
            notes.append(fallback)
        for note in notes if first else []:
            terminal.note(note)

        def make_params() -> Any:
            from s1jax.model import decoder

            if start is not None:
                return store.load_model(start, mesh=mesh).params
            shardings = sharding.param_shardings(about.config, mesh)
            init = jax.jit(decoder.init_params, static_argnums=(0, 2), out_shardings=shardings)
            return init(about.config, jax.random.key(experiment.seed), experiment.train.param_dtype)

        with progress.Bar("starting", batches.num_steps, shown=first) as bar:
            stop_asked = processes.stop_asked(lambda: bar.say(_STOPPING))

            def on_step(record: dict[str, Any]) -> None:
                detail = f"loss {record['loss']:.4f}  {record['tokens_per_second']:,.0f} tokens/s"
                if record["dollars"]:
                    detail += f"  {record['dollars']:,.2f} USD so far, {record['dollars_to_go']:,.2f} to go"
                bar.update(record["step"], detail)

            def on_note(sentence: str) -> None:
                if first:
                    terminal.note(sentence)

            watcher = loop.Watcher(bar.phase, on_step, stop_asked, on_note, bar.resume)
            summary = loop.train(experiment, about, make_params, batches, workdir, mesh, watcher, began, profile)
        if first:
            _print_summary(summary, workdir)
    return processes.STOPPED if summary["stopped"] else 0


def _start(experiment: Experiment, held: contextlib.ExitStack) -> pathlib.Path | None:
    """The checkpoint to start from, which is not removed before `held` is closed: the same one in all processes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from s1jax.checkpoint import store
    from s1jax.parallel.processes import together

    if not experiment.init_from:
        return None
    mine = together(lambda: held.enter_context(store.hold(experiment.init_from)))
    if jax.process_count() == 1:
        return mine
    step = store.step_of(mine)  # another process may find one that a run has saved meanwhile
    common = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if step is None else step)))
    name = mine.name if common < 0 else str(common)
    return together(lambda: held.enter_context(store.hold(mine.with_name(name))))


def _prepare(experiment: Experiment, start: pathlib.Path | None) -> tuple[Any, Any, Any, list[str]]:
    """Mesh, model and batches of the run, and notes on its rows.

    What does not go together is found here, before the run has its folder: a correction would be another run.
    """
    from s1jax.data import sources
    from s1jax.parallel import mesh as mesh_lib
    from s1jax.parallel import sharding
    from s1jax.training import step

    mesh = mesh_lib.make_mesh(experiment.mesh)
    about = _about(experiment, start)
    about.tokenizer.legal_ids(about.config.vocab_size)  # raises where it has ids that the embedding lacks
    if experiment.data.block_size > about.config.context_length:
        raise UserError(
            f"config.data.block_size {experiment.data.block_size} exceeds the model's context_length "
            f"{about.config.context_length}; choose a smaller one."
        )
    sharding.check_batch(mesh_lib.row_shards(mesh), experiment.data.block_size, mesh, "the batch")
    sharding.param_shardings(about.config, mesh)
    step.make_gradients(about.config, experiment.train, mesh)
    share, shares = sharding.row_share(mesh)
    batches, notes = sources.make(experiment, about.tokenizer, about.chat, mesh_lib.row_shards(mesh), share, shares)
    return mesh, about, batches, experiment_lib.unused(experiment) + notes


def _steps(text: str) -> range:
    """Steps of --profile."""
    found = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile={text} is neither a step nor FIRST:LAST; give for example --profile=3:6.")
    return range(first, last + 1)


def _about(experiment: Experiment, start: pathlib.Path | None = None) -> Any:
    """Model, tokenizer and chat format of the run, and where its weights come from: `start`, or config.init_from."""
    from s1jax.checkpoint import store
    from s1jax.text import chat
    from s1jax.text.tokenizer import Tokenizer

    if experiment.chat and experiment.chat not in chat.FORMATS:
        raise UserError(f"config.chat {experiment.chat!r} is no chat format; choose {', '.join(chat.FORMATS)}.")
    provenance = {"experiment": schema.to_dict(experiment)}
    if experiment.init_from:
        base = store.load_metadata(start or experiment.init_from)
        fmt = chat.FORMATS[experiment.chat] if experiment.chat else base.chat
        provenance["init_from"] = base.provenance
        return store.Metadata(base.config, base.tokenizer, _chat_format(experiment, base.tokenizer, fmt), provenance)
    assert experiment.model is not None  # Experiment has either
    if not experiment.tokenizer or not experiment.chat:
        raise UserError("config.tokenizer and config.chat are needed where config.init_from is not given.")
    tokenizer = Tokenizer.load(experiment.tokenizer)
    fmt = _chat_format(experiment, tokenizer, chat.FORMATS[experiment.chat])
    return store.Metadata(experiment.model, tokenizer, fmt, provenance)


def _chat_format(experiment: Experiment, tokenizer: Any, fmt: Any) -> Any:
    """The chat format with the delimiters of the experiment.

    Raises:
      UserError: if the tokenizer lacks one. A source without chat would never notice, and nothing could be sampled.
    """
    from s1jax.text import chat

    wanted = experiment.delimiters
    setting = "delimiters" if wanted.think_start or wanted.think_end else "chat"
    try:
        if setting == "delimiters":
            fmt = chat.with_delimiters(tokenizer, fmt, wanted.think_start, wanted.think_end)
        chat.check(tokenizer, fmt)
    except UserError as error:
        raise UserError(f"config.{setting}: {error}") from error
    return fmt


def _print_summary(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    verb = "stopped at" if summary["stopped"] else "finished"
    if "seconds" not in summary:  # nothing was left to do, and metrics.jsonl is gone
        print(f"{verb} step {summary['steps']}; the checkpoint is {workdir}")
        return
    print(f"{verb} step {summary['steps']} in {summary['seconds']:.0f} s; the checkpoint is {workdir}")
    print(f"  loss              {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}")
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
