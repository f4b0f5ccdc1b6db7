"""Scores training rows with a teacher, for distillation without the teacher beside the student.

    python -m launch.teacher_logits --config=configs/NAME.py --teacher=CKPT --out=FOLDER [--config.a.b=v ...]
        [--keep=top_k|counts] [--size=N] [--seed=N] [--dtype=bfloat16] [--batch_rows=N]
    python -m launch.train --config=configs/NAME.py --workdir=DIR --config.distil.targets=FOLDER

The rows are the training rows of the config, encoded as for training. FOLDER gets, for every
supervised token, the teacher's --size most probable ids with the mass of the rest, or the counts of --size draws from
it. Targets are found by the token ids of a row: another order, seed or packing of the rows uses the same FOLDER, and
rows with other ids are refused. The same command goes on after a killed one, and adds rows that are new.

The teacher is sharded over config.mesh. On several hosts the same command runs in every process, with a FOLDER that all
of them see; s1jax/cli/processes.py says how processes find each other.
"""

from __future__ import annotations

import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

from s1jax.cli import processes, progress, terminal
from s1jax.config import presets
from s1jax.config.experiment import Experiment
from s1jax.errors import UserError
from s1jax.io import paths

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "An experiment of s1jax, by name (countdown_s1), or a file; single settings as --config.a.b=v.",
)
_TEACHER = flags.DEFINE_string("teacher", "", "Checkpoint, training workdir or package:NAME with the same tokenizer.")
_OUT = flags.DEFINE_string("out", "", "Folder of the targets; the same folder goes on or gets more rows.")
_KEEP = flags.DEFINE_enum("keep", "top_k", ["top_k", "counts"], "The most probable ids, or counts of draws.")
_SIZE = flags.DEFINE_integer("size", 0, "Number of ids, or of draws; 0: 64 ids, or 50 draws.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws, which are a function of it, the row's ids and the position.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16"], "Dtype of the teacher; by default float32 on a CPU, bfloat16 elsewhere."
)
_ROWS = flags.DEFINE_integer(
    "batch_rows",
    8,
    "Rows of a batch over all devices, each as long as the longest example and filled with others.",
    1,
)


def main() -> int:
    if not isinstance(_CONFIG.value, ConfigDict):
        raise UserError("--config is missing; give a file of configs/, for example --config=configs/countdown_s1.py.")
    for flag in (_TEACHER, _OUT):
        if not flag.value:
            what = "a checkpoint" if flag is _TEACHER else "a folder for the targets"
            raise UserError(f"--{flag.name} is missing; name {what}.")
        paths.local(flag.value, f"--{flag.name}")
    experiment = presets.experiment(_CONFIG.value.to_dict())
    return processes.run(lambda: _score(experiment, paths.local(_OUT.value, "--out")))


def _score(experiment: Experiment, out: pathlib.Path) -> int:
    import jax

    from s1jax.training.callbacks import Callbacks
    from s1jax.training.teacher_targets import teacher_logits

    first = jax.process_index() == 0
    bars: list[progress.Bar] = []

    def start(done: int, total: int) -> None:
        bars.append(progress.Bar("starting", total, shown=first))
        bars[0].__enter__()
        bars[0].resume(done)

    callbacks = Callbacks(
        on_note=lambda sentence: terminal.note(sentence) if first else None,
        on_start=start,
        on_phase=lambda words: bars[0].phase(words),
        on_step=lambda record: bars[0].update(record["step"], f"{record['tokens_per_second']:,.0f} tokens/s"),
    )
    try:
        made = teacher_logits(
            experiment, _TEACHER.value, out, kind=_KEEP.value, size=_SIZE.value, seed=_SEED.value, dtype=_DTYPE.value,
            rows=_ROWS.value, callbacks=callbacks,
        )  # fmt: skip
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
    if first:
        print(f"{out} has the targets of {made.rows:,} rows, {made.scored:,} of them new")
        if made.scored:
            print(
                f"  {made.positions:,} positions, {made.bytes_per_position:.1f} bytes each; {made.tokens:,} tokens in"
                f" {made.seconds:.0f} s"
            )
    return 0
