"""Fine-tunes a checkpoint on rows of your own, then samples the result.

    python examples/train_on_your_own_rows.py [WORKDIR]

The rows here are 32 searches of the embedded task, written to a JSONL file as `messages`. Put your own file in its
place. One epoch takes seconds on a CPU and only shows how to do it: for the real recipe see
configs/countdown_s1.py.
"""

from __future__ import annotations

import json
import pathlib
import sys

import s1jax
from s1jax.tasks.countdown import problems


def write_rows(file: pathlib.Path, count: int = 32) -> None:
    """Writes training rows: a user's message, and an assistant's with its thinking in <think> tags."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as rows:
        for example in problems.sft_examples(count):
            answer = f"<think>{example.trace}</think>{example.answer}"
            messages = [{"role": "user", "content": example.question}, {"role": "assistant", "content": answer}]
            rows.write(json.dumps({"messages": messages}) + "\n")


def main(workdir: str = "runs/own_rows") -> list[float]:
    """Trains, prints one answer of the trained model and returns the losses."""
    folder = pathlib.Path(workdir)
    write_rows(folder / "rows.jsonl")
    losses: list[float] = []
    settings = {
        "init_from": "package:countdown_base",  # a checkpoint: `s1jax convert` makes one from Hugging Face or GGUF
        "chat": "s1_plain",
        "data": {"source": str(folder / "rows.jsonl"), "block_size": 192, "batching": "packed"},
        "train": {"batch_size": 16, "epochs": 1, "compute_dtype": "float32", "remat": "none"},
        "optimizer": {"learning_rate": 4e-4},
    }
    callbacks = s1jax.Callbacks(on_note=print, on_step=lambda record: losses.append(record["loss"]))
    s1jax.train(settings, folder / "run", callbacks)  # the same call again resumes, or does nothing if it is finished

    engine = s1jax.Engine(str(folder / "run"), slots=4, cache_length=512)
    params = s1jax.SamplingParams(max_thinking_tokens=64, max_answer_tokens=32)
    (output,) = engine.generate(["Make 21 from 3 7 1"], params)
    print("losses", *(f"{loss:.3f}" for loss in losses))
    print(output.thinking, "->", output.answer)
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
