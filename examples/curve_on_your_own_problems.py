"""Draws a scaling curve on problems of your own.

    python examples/curve_on_your_own_problems.py [CHECKPOINT] [FOLDER]

The problems here are six of the embedded task, written to a JSONL file. Put your own file in its place. A problem has a
`question` and an `answer`. FOLDER gets results.json, samples.jsonl and, if matplotlib is installed, scaling.png and
scaling.svg. Six problems only show how to do it: their errors are large.
"""

from __future__ import annotations

import json
import pathlib
import sys

import s1jax

PROBLEMS = {
    "Make 21 from 3 7 1": "(3*7)*1",
    "Make 24 from 4 6 1": "(4*6)*1",
    "Make 12 from 5 4 3": "(5+4)+3",
    "Make 30 from 2 8 5": "(8-2)*5",
    "Make 9 from 6 2 1": "(6+2)+1",
    "Make 40 from 5 3 5": "(5+3)*5",
}


def main(checkpoint: str = "package:countdown_base", folder: str = "runs/own_curve") -> dict[str, float]:
    """Evaluates two budgets and one wait, prints the table and returns the accuracies in percent."""
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "problems.jsonl").open("w") as rows:
        for question, answer in PROBLEMS.items():
            rows.write(json.dumps({"question": question, "answer": answer}) + "\n")

    engine = s1jax.Engine(checkpoint, slots=4, cache_length=512)
    params = s1jax.SamplingParams(max_thinking_tokens=256, max_answer_tokens=32)
    strategies = ["forcing:max=8", "none", "forcing:waits=1"]
    # The same call resumes an evaluation that was stopped.
    result = s1jax.evaluate(engine, str(place / "problems.jsonl"), strategies, place / "curve", params=params)
    for run in result.runs:
        print(f"{run.name:10} {run.accuracy:5.1f} ± {run.error:4.1f} % with {run.thinking_tokens:5.1f} thinking tokens")
    print("written:", *(str(result.folder / name) for name in result.files))
    return {run.name: run.accuracy for run in result.runs}


if __name__ == "__main__":
    main(*sys.argv[1:])
