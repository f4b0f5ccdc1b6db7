"""Trains and evaluates the small model that comes with s1jax: `s1jax quickstart [--out=DIR]`.

Fine-tunes `package:countdown_base` on 1,000 Countdown examples. Then measures accuracy against thinking tokens on 400
held-out problems. Takes about five minutes on 2 CPU cores. The same command goes on where it was stopped.

DIR gets the checkpoint, results.json, samples.jsonl and, where matplotlib is installed, scaling.png.
"""

from __future__ import annotations

import os
import pathlib
import time

from absl import flags

from s1jax.cli import subcommand
from s1jax.io import paths

_OUT = flags.DEFINE_string("out", "runs/quickstart", "Folder of the run and of its results.")
_run = subcommand.run


def main() -> int:
    out = os.fspath(paths.local(_OUT.value, "--out"))
    start_time = time.monotonic()
    for heading, command in stages(out):
        print(f"\n{heading}", flush=True)
        code = _run(command)
        if code:
            return code
    curve = f"The curve: {out}/scaling.png; the" if pathlib.Path(out, "scaling.png").exists() else "The"
    print(
        f"\nDone in {time.monotonic() - start_time:.0f} s. {curve} numbers: {out}/results.json; every answer:"
        f" {out}/samples.jsonl"
    )
    return 0


def stages(out: str) -> list[tuple[str, list[str]]]:
    """Returns (heading, command and flags of s1jax) of the two steps."""
    train = ["train", "--config=countdown_s1", f"--workdir={out}"]
    evaluate = [
        *("evaluate", f"--checkpoint={out}", "--task=countdown", f"--out={out}", "--num_problems=400"),
        *("--batch_size=50", "--budgets=0,16,32,64,none", "--waits=0,1,2,4,6,8"),
    ]
    return [
        ("1/2  Fine-tuning package:countdown_base on 1,000 examples, 5 epochs (2 to 3 minutes on 2 cores)", train),
        (
            "2/2  Answering 400 held-out problems with thinking cut short and with thinking extended (2 to 3 minutes)",
            evaluate,
        ),
    ]
