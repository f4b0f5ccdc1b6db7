"""Bytes on the disk of a teacher's targets, for a supervised token: top-k with a rest against counts of draws.

    python -m benchmarks.teacher_targets [--config=countdown_s1 --teacher=package:countdown_base --rows=200]

Beside the bytes: how many different ids are kept, and how much of the teacher's mass is not among them.
"""

from __future__ import annotations

import argparse
import pathlib
import runpy
import tempfile
from typing import Any

import numpy as np

import s1jax
from benchmarks import record
from s1jax.cli import configs
from s1jax.config import presets
from s1jax.config.experiment import Experiment
from s1jax.data.teacher_logits import Folder

CASES = (("top_k", 4), ("top_k", 16), ("top_k", 64), ("counts", 50))


def measure(experiment: Experiment, teacher: str, kind: str, size: int) -> dict[str, Any]:
    """Scores the rows into a folder of its own, and looks at what is there."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "targets"
        made = s1jax.teacher_logits(experiment, teacher, path, kind=kind, size=size)
        targets = Folder(path)
        kept, rest = [], []
        for row in targets.all():
            kept.append((row.probabilities > 0).sum(1))
            rest.append(np.zeros(len(row.ids)) if row.rest is None else row.rest)
    return {
        "kind": kind,
        "size": size,
        "positions": made.positions,
        "bytes": made.bytes_per_position,
        "ids": float(np.concatenate(kept).mean()),
        "rest": float(np.concatenate(rest).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="countdown_s1", help="name of an experiment of configs/")
    parser.add_argument("--teacher", default="package:countdown_base")
    parser.add_argument("--rows", type=int, default=200)
    args = parser.parse_args()
    settings = runpy.run_path(str(configs.files()[args.config]))["get_config"]().to_dict()
    settings["data"]["num_rows"] = args.rows
    experiment = presets.experiment(settings)
    cases = [measure(experiment, args.teacher, kind, size) for kind, size in CASES]
    results = {"config": args.config, "teacher": args.teacher, "rows": args.rows, "cases": cases}
    record.write("teacher_targets", results)


if __name__ == "__main__":
    main()
