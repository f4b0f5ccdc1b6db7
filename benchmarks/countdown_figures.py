"""Figures of the embedded task over several bases and fine-tuning seeds: `python -m benchmarks.countdown_figures`.

For every base: its accuracy in its own format, searching freely, then for every seed 1,000 other rows in another order,
fine-tuned and evaluated on held-out problems (hard ones are counted apart). Runs that are complete are not
made again. Writes benchmarks/results/countdown_figures.json: each run, and the mean and deviation over runs.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from absl import app, flags

from benchmarks import record
from s1jax.checkpoint import store
from s1jax.evaluation import metrics
from s1jax.tasks.countdown import problems

FLAGS = flags.FLAGS
flags.DEFINE_list("bases", ["package:countdown_base"], "Checkpoints or workdirs of configs/countdown_base.py.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the 1,000 rows and of their order.")
flags.DEFINE_list("settings", [], "Changes to configs/countdown_s1.py, for example train.param_dtype=bfloat16.")
flags.DEFINE_enum("split", "test", ["dev", "test"], "Held-out problems.")
flags.DEFINE_integer("num_problems", 0, "Problems from the front; 0 takes all.")
flags.DEFINE_string("workdir", "runs/countdown_figures", "Folder of all runs.")
flags.DEFINE_string("name", "countdown_figures", "Name of the record in benchmarks/results.")

BUDGETS = "0,16,32,64,none"
WAITS = "1,2,4,6,8,10"


def main(_: list[str]) -> None:
    root = pathlib.Path(FLAGS.workdir)
    rows = problems.prompt_rows(FLAGS.split, FLAGS.num_problems)
    bases: dict[str, Any] = {}
    tuned: list[dict[str, Any]] = []
    for i, base in enumerate(FLAGS.bases):
        bases[base] = {
            "runs": _evaluate(base, root / f"base{i}", rows, ["--budgets=none"]),
            "provenance": store.load_metadata(base).provenance,
        }
        for seed in FLAGS.seeds:
            workdir = root / f"base{i}_seed{seed}"
            settings = [f"--config.{s}" for s in (f"init_from={base}", f"data.seed={seed}", *FLAGS.settings)]
            _run("launch.train", "--config=configs/countdown_s1.py", f"--workdir={workdir}", *settings)
            curve = _evaluate(str(workdir), workdir / FLAGS.split, rows, [f"--budgets={BUDGETS}", f"--waits={WAITS}"])
            tuned.append({"base": base, "seed": int(seed), "loss": _last_loss(workdir), "runs": curve})
    names = tuned[0]["runs"]
    mean = {
        name: {
            key: {
                "mean": round(statistics.mean(run["runs"][name][key] for run in tuned), 2),
                "deviation": round(statistics.pstdev(run["runs"][name][key] for run in tuned), 2),
            }
            for key in names[name]
        }
        for name in names
    }
    hard = sum(row["hard"] for row in rows)
    results = {"settings": FLAGS.settings, "split": FLAGS.split, "problems": len(rows), "hard_problems": hard}
    record.write(FLAGS.name, {**results, "over_runs": mean, "runs": tuned, "bases": bases})


def _evaluate(checkpoint: str, out: pathlib.Path, rows: list[dict[str, Any]], settings: list[str]) -> dict[str, Any]:
    """Accuracy in % over all, hard and easy problems, its standard error, and thinking tokens, of every run."""
    if not (out / "results.json").exists():
        common = [f"--split={FLAGS.split}", f"--num_problems={FLAGS.num_problems}", f"--out={out}"]
        _run("launch.evaluate", f"--checkpoint={checkpoint}", *common, *settings)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    found = {}
    for name in dict.fromkeys(sample["run"] for sample in samples):
        here = [sample for sample in samples if sample["run"] == name]
        right = [sample["correct"] for sample in here]
        accuracy, error = metrics.accuracy(right)
        figures = {"accuracy": accuracy, "error": error}
        for kind in (True, False):
            some = [verdict for verdict, row in zip(right, rows, strict=True) if row["hard"] == kind]
            figures["hard" if kind else "easy"] = metrics.accuracy(some)[0]
        figures["thinking_tokens"] = statistics.mean(sample["thinking_tokens"] for sample in here)
        figures["unfinished"] = 100 * statistics.mean(sample["answer_end"] != "stop" for sample in here)
        found[name] = {key: round(value, 2) for key, value in figures.items()}
    return found


def _last_loss(workdir: pathlib.Path) -> float:
    """Mean over the steps of the last epoch."""
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return round(statistics.mean(step["loss"] for step in steps[-len(steps) // 5 :]), 4)


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    app.run(main)
