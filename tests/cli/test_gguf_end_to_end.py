"""SmolLM2 from a GGUF file to a checkpoint and back, by the commands a user types; `S1JAX_SMOLLM2_GGUF` names it."""

import os

import numpy as np
import pytest

from s1jax.checkpoint import store
from tests.checkpoint import llama_cpp
from tests.checkpoint.test_gguf_real import COUNT, _logits
from tests.cli import forks


def test_in_out_and_llama_cpp(tmp_path):
    source = os.environ.get("S1JAX_SMOLLM2_GGUF")
    if not source:
        pytest.skip("S1JAX_SMOLLM2_GGUF names no GGUF file; see WORKSPACE.md")
    llama_cpp.folder()
    checkpoint, target = tmp_path / "smollm2", tmp_path / "smollm2.gguf"
    with forks.Forks("launch.convert", "s1jax.cli.convert") as convert:
        for flags in (
            [f"--from_gguf={source}", f"--to={checkpoint}", "--chat=s1_plain"],
            [f"--from={checkpoint}", f"--to_gguf={target}", "--type=Q8_0"],
        ):
            done = convert.run(*flags)
            assert done.returncode == 0, done.stderr
    assert "211 Q8_0" in done.stdout and "61 F32" in done.stdout
    model = store.load_model(checkpoint)
    prompt = model.tokenizer.encode("The capital of France is")
    ids, _ = llama_cpp.run(target, prompt, COUNT)
    run, ours = _logits(model.config, model.params), list(prompt)
    for _ in range(COUNT):
        row = [*ours, *[0] * (len(prompt) + COUNT - len(ours))]
        ours.append(int(np.argmax(run(row)[len(ours) - 1])))
    assert ours[len(prompt) :] == ids
