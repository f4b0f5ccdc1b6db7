"""Trains the base checkpoint that ships in the package again: `python -m benchmarks.ship_countdown_base`.

Trains as configs/countdown_base.py says, and resumes a run that was stopped. Then replaces s1jax/assets/countdown_base
by its weights, with command, commit, seed, loss, time and versions in their provenance.
"""

from __future__ import annotations

import json
import pathlib
import shutil

from absl import app, flags

import s1jax
from benchmarks import record
from configs import countdown_base
from s1jax.checkpoint import digests, store

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "runs/countdown_base", "Folder of the training run.")

ASSET = pathlib.Path("s1jax/assets/countdown_base")
LAST_STEPS = 50  # the loss of one batch says little


def main(_: list[str]) -> None:
    # The same training on the command line.
    command = ["-m", "launch.train", "--config=configs/countdown_base.py", f"--workdir={FLAGS.workdir}"]
    environment = record.environment()
    s1jax.train(countdown_base.get_config().to_dict(), FLAGS.workdir, record.progress("training"))
    metrics = [json.loads(line) for line in (pathlib.Path(FLAGS.workdir) / "metrics.jsonl").read_text().splitlines()]
    model = store.load_model(FLAGS.workdir)
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
    if ASSET.exists():
        shutil.rmtree(ASSET)
    store.save_model(ASSET, model.params, model.config, model.tokenizer, model.chat, provenance)
    # Orbax asks only whether this file is there, but writes into it where on this machine the folder is.
    (ASSET / "params/commit_success.txt").write_text("committed\n")
    digests.write(ASSET)
    print(json.dumps({name: value for name, value in provenance.items() if name != "experiment"}, indent=1))


if __name__ == "__main__":
    app.run(main)
