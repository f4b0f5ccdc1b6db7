"""Runs the curation story and records its figures: `python -m benchmarks.curation_story`.

Runs `s1jax curation_story`, the command of launch/curation.sh, or goes on with it; --long: its form with --more. Writes
benchmarks/results/curation_story.json, or of --long curation_story_more.json: accuracy of arms and students,
differences with standard errors, what became of the planted defects, tokens and dollars of the teacher, and the seconds
that the story took if it was not stopped. The picture goes beside it.
"""

from __future__ import annotations

import json
import pathlib
import shutil

from absl import app, flags

from benchmarks import record
from s1jax.cli import subcommand

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "runs/curation", "Folder of the story; --long has one of its own.")
flags.DEFINE_bool("long", False, "Its longer form: `s1jax curation_story --more`.")


def main(_: list[str]) -> None:
    name = "curation_story_more" if FLAGS.long else "curation_story"
    workdir = pathlib.Path(f"{FLAGS.workdir}_more" if FLAGS.long else FLAGS.workdir)
    is_whole = not workdir.exists()
    code = subcommand.run(["curation_story", f"--out={workdir}", *(["--more"] if FLAGS.long else [])])
    if code:
        raise SystemExit(code)
    found = json.loads((workdir / "story.json").read_text())
    seconds = found.pop("seconds")
    record.write(name, {"command": "bash launch/curation.sh", "seconds": seconds if is_whole else None, **found})
    if (workdir / "story.png").exists():
        shutil.copy(workdir / "story.png", record.RESULTS / f"{name}.png")


if __name__ == "__main__":
    app.run(main)
