"""Figures of the embedded task over several bases and fine-tuning seeds: `python -m benchmarks.countdown_figures`.

For every base: its accuracy in its own format without limits. Then, for every seed, 1,000 other rows in another order
are fine-tuned on and evaluated on held-out problems, with figures of the hard ones beside. Complete runs are not made
again. Writes benchmarks/results/countdown_figures.json: each run, and the mean and deviation over runs.
"""

from __future__ import annotations

import functools
import json
import operator
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from absl import app, flags

import s1jax
from benchmarks import record
from configs import countdown_s1
from s1jax.checkpoint import store
from s1jax.evaluation import metrics
from s1jax.tasks import benchmarks as tasks
from s1jax.tasks.task import Task

FLAGS = flags.FLAGS
flags.DEFINE_list("bases", ["package:countdown_base"], "Checkpoints or workdirs of configs/countdown_base.py.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the 1,000 rows and of their order.")
flags.DEFINE_list("settings", [], "Changes to configs/countdown_s1.py, for example train.param_dtype=bfloat16.")
flags.DEFINE_enum("split", "test", ["dev", "test"], "Held-out problems.")
flags.DEFINE_integer("num_problems", 0, "Problems from the front; 0 takes all.")
flags.DEFINE_string("workdir", "runs/countdown_figures", "Folder of all runs.")
flags.DEFINE_string("name", "countdown_figures", "Name of the record in benchmarks/results.")

STRATEGIES = (
    *(f"forcing:max={budget}" for budget in (0, 16, 32, 64)),
    "none",
    *(f"forcing:waits={waits}" for waits in (1, 2, 4, 6, 8, 10)),
)


def main(_: list[str]) -> None:
    root = pathlib.Path(FLAGS.workdir)
    task = tasks.load("countdown", FLAGS.num_problems, FLAGS.split)
    bases: dict[str, Any] = {}
    tuned: list[dict[str, Any]] = []
    for i, base in enumerate(FLAGS.bases):
        bases[base] = {
            "runs": _evaluate(base, root / f"base{i}", task, ["none"]),
            "provenance": store.load_metadata(base).provenance,
        }
        for seed in FLAGS.seeds:
            workdir = root / f"base{i}_seed{seed}"
            _train(base, int(seed), workdir)
            curve = _evaluate(str(workdir), workdir / FLAGS.split, task, STRATEGIES)
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
    hard = sum(row["hard"] for row in task.rows)
    results = {"settings": FLAGS.settings, "split": FLAGS.split, "problems": len(task.rows), "hard_problems": hard}
    record.write(FLAGS.name, {**results, "over_runs": mean, "runs": tuned, "bases": bases})


def _train(base: str, seed: int, workdir: pathlib.Path) -> None:
    """Fine-tunes a base with configs/countdown_s1.py, changed as --settings asks."""
    config = countdown_s1.get_config()
    config.init_from, config.data.seed = base, seed
    for setting in FLAGS.settings:
        name, _, text = setting.partition("=")
        before = functools.reduce(operator.getitem, name.split("."), config)
        config.update_from_flattened_dict({name: text if isinstance(before, str) else json.loads(text)})
    s1jax.train(config.to_dict(), workdir, record.progress(f"training {workdir}"))


def _evaluate(checkpoint: str, out: pathlib.Path, task: Task, strategies: Sequence[str]) -> dict[str, Any]:
    """Accuracy in % over all, hard and easy problems, its standard error, and thinking tokens, of every run."""
    if not (out / "results.json").exists():
        model = s1jax.load_model(checkpoint)
        # All runs share one compiled program.
        engine = s1jax.Engine(model, slots=64, cache_length=model.config.context_length)
        print(f"evaluating {checkpoint}", flush=True)
        s1jax.evaluate(engine, task, strategies, out, on_note=print)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    found = {}
    for name in dict.fromkeys(sample["run"] for sample in samples):
        here = [sample for sample in samples if sample["run"] == name]
        right = [sample["correct"] for sample in here]
        accuracy, error = metrics.accuracy(right)
        figures = {"accuracy": accuracy, "error": error}
        for kind in (True, False):
            some = [verdict for verdict, row in zip(right, task.rows, strict=True) if row["hard"] == kind]
            figures["hard" if kind else "easy"] = metrics.accuracy(some)[0]
        figures["thinking_tokens"] = statistics.mean(sample["thinking_tokens"] for sample in here)
        figures["unfinished"] = 100 * statistics.mean(sample["answer_end"] != "stop" for sample in here)
        found[name] = {key: round(value, 2) for key, value in figures.items()}
    return found


def _last_loss(workdir: pathlib.Path) -> float:
    """Mean over the steps of the last epoch."""
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return round(statistics.mean(step["loss"] for step in steps[-len(steps) // 5 :]), 4)


if __name__ == "__main__":
    app.run(main)
