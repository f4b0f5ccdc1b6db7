"""How well a small model knows which of its answers to hand off: `python -m benchmarks.handoff`.

Fine-tunes the shipped base with configs/countdown_s1.py, once for each seed. Local answers are those of the fine-tuned
model without waits and with few; the remote is the same model with eight waits, or the base model, which searches
freely. P(wrong) is fitted to problems of the dev split, and all figures are of the test split. Complete runs are not
made again. Writes benchmarks/results/handoff.json.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

import s1jax
from benchmarks import record
from configs import countdown_s1
from s1jax.checkpoint import store
from s1jax.evaluation import handoff, outcomes, strategies
from s1jax.evaluation.handoff import Price, Side, Study
from s1jax.evaluation.outcomes import Outcome
from s1jax.evaluation.strategies import Strategy
from s1jax.remote import confidence
from s1jax.tasks import benchmarks as tasks
from s1jax.tasks.task import Task

FLAGS = flags.FLAGS
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the 1,000 rows and of their order.")
flags.DEFINE_integer("num_problems", 400, "Problems from the front of each split.")
flags.DEFINE_float("local_price", 0.14, "USD per million output tokens of the local model.")
flags.DEFINE_float("remote_price", 2.19, "USD per million output tokens of the remote.")
flags.DEFINE_string("workdir", "runs/handoff", "Folder of all runs.")

BASE = "package:countdown_base"
LOCAL = ("forcing:max=32", "none", "forcing:waits=1", "forcing:waits=2", "forcing:waits=4")
REMOTE = "forcing:waits=8"
SHARES = (0.3, 0.5)
_CURVES = ("no limit", "Wait x1")  # local runs whose curves are recorded


def main(_: list[str]) -> None:
    root = pathlib.Path(FLAGS.workdir)
    split = {name: tasks.load("countdown", FLAGS.num_problems, name) for name in ("dev", "test")}
    base = _evaluate(BASE, root / "base", split["test"], ["none"])[strategies.parse("none")]
    runs = []
    for seed in FLAGS.seeds:
        workdir = root / f"seed{seed}"
        _train(int(seed), workdir)
        graded = {name: _evaluate(str(workdir), workdir / name, task, (*LOCAL, REMOTE)) for name, task in split.items()}
        for text in LOCAL:
            for remote, answers in (("Wait x8", graded["test"][strategies.parse(REMOTE)]), ("base", base)):
                runs.append({"seed": int(seed), **_study(strategies.parse(text), graded, split, remote, answers)})
    results = {
        "problems": FLAGS.num_problems, "usd_per_million_output_tokens": _prices(), "over_seeds": _over_seeds(runs),
        "runs": runs,
    }  # fmt: skip
    record.write("handoff", results)


def _prices() -> dict[str, float]:
    return {"local": FLAGS.local_price, "remote": FLAGS.remote_price}


def _train(seed: int, workdir: pathlib.Path) -> None:
    config = countdown_s1.get_config()
    config.data.seed = seed
    s1jax.train(config.to_dict(), workdir, record.progress(f"training {workdir}"))


def _evaluate(checkpoint: str, out: pathlib.Path, task: Task, texts: Sequence[str]) -> dict[Strategy, list[Outcome]]:
    """Returns the graded answers of each strategy, one a problem."""
    chosen = [strategies.parse(text) for text in texts]
    if not (out / "results.json").exists():
        model = store.using(checkpoint, store.load_model)
        engine = s1jax.Engine(model, slots=50, cache_length=model.config.context_length)
        print(f"evaluating {checkpoint} on {task.title}", flush=True)
        s1jax.evaluate(engine, task, chosen, out, on_note=print)
    found: dict[str, list[list[dict[str, Any]]]] = {each.name("Wait"): [[] for _ in task.rows] for each in chosen}
    for line in (out / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        found[sample["run"]][sample["problem"]].append(sample)
    return {
        each: [outcomes.settle(each, task, *pair) for pair in zip(task.rows, found[each.name("Wait")], strict=True)]
        for each in chosen
    }


def _study(
    local: Strategy,
    graded: Mapping[str, Mapping[Strategy, Sequence[Outcome]]],
    split: Mapping[str, Task],
    name: str,
    remote: Sequence[Outcome],
) -> dict[str, Any]:
    """Figures of one local strategy beside one remote."""
    fewer = handoff.cheaper(local, list(graded["test"]))
    sure = {
        part: handoff.confidences(split[part], graded[part][local], graded[part][fewer] if fewer else None)
        for part in split
    }
    here = _side(local.name("Wait"), graded["test"][local], FLAGS.local_price)
    away = _side(name, remote, FLAGS.remote_price)
    wrong = [not outcome.right for outcome in graded["dev"][local]]
    questions = [row["question"] for row in split["dev"].rows]
    scores = {
        "mean": -np.array([each.mean for each in sure["test"]]),
        "answer": -np.array([each.answer for each in sure["test"]]),
        "lowest_window": -np.array([each.lowest_window for each in sure["test"]]),
    }
    fit = confidence.fit(sure["dev"], wrong, task="dev", strategy=here.name, questions=questions)
    assert not set(fit.problems) & {confidence.digest(row["question"]) for row in split["test"].rows}
    scores["fit"] = np.array([fit.wrong(each) for each in sure["test"]])
    if fewer:
        agreeing = confidence.fit(sure["dev"], wrong, task="dev", strategy=here.name, use_agreement=True)
        scores["fit_with_agreement"] = np.array([agreeing.wrong(each) for each in sure["test"]])
    study = Study(here, away, "fit", scores, fit)
    found = study.record()
    calibration = {
        "mean_p_wrong": round(float(scores["fit"].mean()), 4),
        "share_wrong": round(float((~here.right).mean()), 4),
        "brier": round(float(np.mean((scores["fit"] - ~here.right) ** 2)), 4),
        "handed_off_at_the_threshold_of": {
            str(share): round(float(np.mean(scores["fit"] >= fit.threshold(share))), 4) for share in SHARES
        },
    }
    if here.name not in _CURVES:
        del found["curve"]
    half = {score: _gain(dataclasses.replace(study, score=score)) for score in scores}
    return found | {"above_random_at_half": half, "calibration": calibration}


def _side(name: str, graded: Sequence[Outcome], price: float) -> Side:
    return handoff.side(name, graded, Price(0.0, price), [0] * len(graded))


def _gain(study: Study) -> float:
    """Percentage points above random mixing where half is handed off."""
    at = study.at(0.5)
    return round(at["accuracy"] - at["random"], 2)


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of each local strategy beside each remote."""

    def both(values: Sequence[float]) -> dict[str, float]:
        return {"mean": round(statistics.mean(values), 4), "deviation": round(statistics.pstdev(values), 4)}

    found: dict[str, Any] = {}
    for name in dict.fromkeys(f"{run['local']}, remote {run['remote']}" for run in runs):
        some = [run for run in runs if f"{run['local']}, remote {run['remote']}" == name]
        found[name] = {
            "local_accuracy": both([run["always_local"]["accuracy"] for run in some]),
            "remote_accuracy": both([run["always_remote"]["accuracy"] for run in some]),
            "oracle_apgr": both([run["oracle_apgr"] for run in some]),
            **{
                score: {
                    "auroc": both([run["scores"][score]["auroc"] for run in some]),
                    "apgr": both([run["scores"][score]["apgr"] for run in some]),
                    "above_random_at_half": both([run["above_random_at_half"][score] for run in some]),
                }
                for score in some[0]["scores"]
            },
        }
    return found


if __name__ == "__main__":
    app.run(main)
