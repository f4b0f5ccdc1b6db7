"""Real models from a GGUF file to a checkpoint, through LoRA and back, by the commands a user types.

`S1JAX_SMOLLM2_GGUF` and `S1JAX_GEMMA3_GGUF` name the files. A minute or two of processor time each.
"""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

from s1jax.checkpoint import store
from s1jax.checkpoint.gguf import file as file_lib
from s1jax.checkpoint.gguf import read
from tests.checkpoint import llama_cpp
from tests.checkpoint.test_gguf_real import COUNT, MODELS, Real, _compare, _logits
from tests.cli import forks


class Run(NamedTuple):
    """Folders of a base model and of its adapters, the merged model, a prompt, and our greedy ids after it."""

    folder: pathlib.Path
    model: store.Model
    prompt: list[int]
    ids: list[int]


def convert(*commands):
    with forks.Forks("launch.convert", "s1jax.cli.convert") as command:
        for flags in commands:
            done = command.run(*flags)
            assert done.returncode == 0, done.stderr
    return done.stdout


def greedy(model, prompt):
    run, ids = _logits(model.config, model.params), list(prompt)
    for _ in range(COUNT):
        row = [*ids, *[0] * (len(prompt) + COUNT - len(ids))]
        ids.append(int(np.argmax(run(row)[len(ids) - 1])))
    return ids[len(prompt) :]


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory):
    """Name and checkpoint of a real model."""
    variable, chat, _ = MODELS[request.param]
    source = os.environ.get(variable)
    if not source:
        pytest.skip(f"{variable} names no GGUF file; see WORKSPACE.md")
    checkpoint = tmp_path_factory.mktemp(request.param) / "base"
    convert([f"--from_gguf={source}", f"--to={checkpoint}", f"--chat={chat}"])
    return request.param, checkpoint


@pytest.fixture(scope="module")
def run(base):
    """20 steps of LoRA on sums, the base for PEFT, and the adapters as a PEFT folder."""
    name, checkpoint = base
    folder = checkpoint.parent
    rows = [(3 * i + 5, 7 * i + 2) for i in range(8)]
    lines = [
        {"question": f"What is {a} plus {b}?", "thinking_trajectories": [f"It is {a + b}."], "attempt": f"{a + b}"}
        for a, b in rows
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {
        "init_from": checkpoint, "data.source": folder / "rows.jsonl", "data.num_rows": 0, "data.batching": "padded",
        "data.block_size": 64, "train.batch_size": 2, "train.steps": 20, "optimizer.learning_rate": 1e-3,
        "log.tensorboard": False, "lora.rank": 8,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    with forks.Forks("launch.train", "s1jax.cli.train") as train:
        done = train.run("--config=configs/smollm2_gsm8k.py", f"--workdir={folder}/run", *flags)
        assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").open() if '"loss"' in line]
    assert losses[-1] < 0.3 * losses[0]
    convert(
        [f"--from={checkpoint}", f"--to_hf={folder}/hf", "--dtype=float32"],
        [f"--from={folder}/run", f"--base={folder}/hf", f"--to_hf={folder}/peft"],
    )
    model = store.load_model(folder / "run", host=True)
    prompt = model.tokenizer.encode(("<bos>" if name == "gemma3" else "") + "What is 12 plus 30?")
    return Run(folder, model, prompt, greedy(model, prompt))


def test_in_out_and_llama_cpp(base, tmp_path):
    llama_cpp.folder()
    name, checkpoint = base
    if name == "gemma3":
        pytest.skip("llama.cpp's 8-bit activations change tokens of Gemma-3-270M; test_gguf_real.py compares closeness")
    target = tmp_path / "m.gguf"
    counts = convert([f"--from={checkpoint}", f"--to_gguf={target}", "--type=Q8_0"])
    assert "211 Q8_0" in counts and "61 F32" in counts
    model = store.load_model(checkpoint)
    prompt = model.tokenizer.encode("The capital of France is")
    assert greedy(model, prompt) == llama_cpp.run(target, prompt, COUNT)[0]


def test_peft_has_the_ids_of_the_adapters(run):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "hf", dtype=torch.float32)
    assert greedy(store.load_model(run.folder / "base", host=True), run.prompt) != run.ids
    model, ids = peft.PeftModel.from_pretrained(model, run.folder / "peft").eval(), list(run.prompt)
    with torch.no_grad():
        for _ in range(COUNT):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[len(run.prompt) :] == run.ids


@pytest.mark.parametrize("file_type", ["F32", "Q8_0", "Q4_K_M"])
def test_merged_in_llama_cpp(run, tmp_path, file_type):
    """F32: our ids. Others: close to ours with the weights of the same file; llama.cpp rounds activations to 8 bits.

    Its keys and values are float16, which moves probabilities of F32 too. A model after 20 fast steps is less sure of
    its tokens than those of test_gguf_real.py: of Gemma-3-270M in Q8_0 the first probabilities differ by 0.06, with a
    KL divergence of 0.023, and all 24 tokens are ours.
    """
    llama_cpp.folder()
    path = tmp_path / "m.gguf"
    convert([f"--from={run.folder}/run", "--merge", f"--to_gguf={path}", f"--type={file_type}"])
    real = Real(str(path), run.model.config, {}, run.model.tokenizer, "", run.prompt)
    params = read.read_params(file_lib.open_file(path), run.model.config, str(path))
    difference, kl, same, gap = _compare(path, real, params)
    if file_type == "F32":
        assert llama_cpp.run(path, run.prompt, COUNT)[0] == run.ids
        assert difference < 0.01 and kl < 1e-3 and same == COUNT
    assert difference < 0.1 and kl < 0.05 and same >= COUNT - 4 and gap < 0.5
