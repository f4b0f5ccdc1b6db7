"""Trains a base checkpoint that ships in the package again: `python -m benchmarks.ship_countdown_base`.

    python -m benchmarks.ship_countdown_base --config=countdown_base_quarter --seed=1

Trains as configs/countdown_base.py or the config of --config says, and resumes a run that was stopped. Then replaces
the folder of s1jax/assets with the config's name, for another seed than 0 followed by it, by the weights, with command,
commit, seed, loss, time and versions in their provenance.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import shutil

from absl import app, flags

import s1jax
from benchmarks import record
from s1jax.checkpoint import digests, store

FLAGS = flags.FLAGS
flags.DEFINE_enum("config", "countdown_base", ["countdown_base", "countdown_base_quarter"], "Of the training run.")
flags.DEFINE_integer("seed", 0, "Of the random weights and of the text.")
flags.DEFINE_string("workdir", "", "Folder of the training run; by default runs/NAME.")

ASSETS = pathlib.Path("s1jax/assets")
LAST_STEPS = 50  # the loss of one batch says little


def main(_: list[str]) -> None:
    name = FLAGS.config + (f"_{FLAGS.seed}" if FLAGS.seed else "")
    asset, workdir = ASSETS / name, FLAGS.workdir or f"runs/{name}"
    seeds = [f"--config.seed={FLAGS.seed}", f"--config.data.seed={FLAGS.seed}"] if FLAGS.seed else []
    # The same training on the command line.
    command = ["-m", "launch.train", f"--config=configs/{FLAGS.config}.py", f"--workdir={workdir}", *seeds]
    environment = record.environment()
    config = importlib.import_module(f"configs.{FLAGS.config}").get_config()
    config.seed = config.data.seed = FLAGS.seed
    s1jax.train(config.to_dict(), workdir, record.progress("training"))
    metrics = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    model = store.load_model(workdir)
    training = model.provenance["experiment"]
    provenance = {
        "command": " ".join(["python", *command]),
        "seed": training["seed"],
        "corpus_seed": training["data"]["seed"],
        "steps": len(metrics),
        f"mean_loss_of_last_{LAST_STEPS}_steps": round(sum(m["loss"] for m in metrics[-LAST_STEPS:]) / LAST_STEPS, 4),
        "training_seconds": round(sum(m["seconds"] for m in metrics), 1),
        "environment": environment,
        **model.provenance,
    }
    if asset.exists():
        shutil.rmtree(asset)
    store.save_model(asset, model.params, model.config, model.tokenizer, model.chat, provenance)
    # Orbax asks only whether this file is there, but writes into it where on this machine the folder is.
    (asset / "params/commit_success.txt").write_text("committed\n")
    digests.write(asset)
    print(json.dumps({name: value for name, value in provenance.items() if name != "experiment"}, indent=1))


if __name__ == "__main__":
    app.run(main)
