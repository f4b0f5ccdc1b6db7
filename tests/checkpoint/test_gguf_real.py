"""Real GGUF files in and out, run by llama.cpp; `S1JAX_SMOLLM2_GGUF` and `S1JAX_GEMMA3_GGUF` name them."""

import json
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.gguf import file as file_lib
from s1jax.checkpoint.gguf import metadata, read, tokenizer, write
from s1jax.config.model import ModelConfig
from s1jax.model import decoder
from s1jax.text.chat import FORMATS
from s1jax.text.tokenizer import Tokenizer
from tests.checkpoint import llama_cpp

ROWS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"
MODELS = {
    "smollm2": ("S1JAX_SMOLLM2_GGUF", "s1_plain", "The capital of France is"),
    "gemma3": ("S1JAX_GEMMA3_GGUF", "gemma3", "<bos>The capital of France is"),
}
COUNT = 24


class Real(NamedTuple):
    """A model of a file, and what is asked of it."""

    path: str
    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    chat: str
    prompt: list[int]


@pytest.fixture(scope="module", params=MODELS)
def real(request):
    llama_cpp.folder()
    variable, chat, text = MODELS[request.param]
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no GGUF file; see WORKSPACE.md")
    file = file_lib.open_file(path)
    config = metadata.read_config(file, path)
    names = ("tokenizer.json", "tokenizer_config.json")
    parts = zip(names, tokenizer.read_tokenizer(file, path), strict=True)
    found = Tokenizer({name: json.dumps(part).encode() for name, part in parts}, path)
    return Real(path, config, read.read_params(file, config, path), found, chat, found.encode(text))


def _logits(config, params):
    """A function from ids to the float32 logits after each of them."""
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def run(params, row):
        place = jnp.arange(row.shape[1])[None]
        hidden = decoder.forward(params, config, row, place, jnp.ones_like(row), dtype=jnp.float32)
        return decoder.logits(params, config, hidden)[0]

    return lambda ids: np.asarray(run(params, np.asarray([ids], np.int32)))


def _compare(path, real, params):
    """Difference of first-token probabilities, their KL divergence, how often our best token follows the ids of
    llama.cpp, and the largest gap of logits where it does not."""
    ids, first = llama_cpp.run(path, real.prompt, COUNT)
    rows = _logits(real.config, params)([*real.prompt, *ids])[len(real.prompt) - 1 : -1]
    ours = np.asarray(jax.nn.softmax(rows[0]))
    places = np.array(list(first))
    theirs = np.array(list(first.values()))
    kl = float(np.sum(theirs * np.log(np.maximum(theirs, 1e-12) / np.maximum(ours[places], 1e-12))))
    gaps = rows.max(-1) - rows[np.arange(COUNT), ids]
    return np.abs(theirs - ours[places]).max(), kl, int((gaps == 0).sum()), gaps.max()


def test_llama_cpp_has_the_same_tokens(real):
    texts = ["naïve café, Ωμέγα, 世界, 😀\n\n\n\t x  y   1,234.5 don't DON'T"]
    if ROWS.exists():
        with ROWS.open() as lines:
            texts += [text for line, _ in zip(lines, range(100), strict=False) for text in json.loads(line).values()]
    found = llama_cpp.tokenize(real.path, [(text, False) for text in texts])
    for text, ids in zip(texts, found["texts"], strict=True):
        assert ids == real.tokenizer.encode_text(text)


def test_the_file_itself(real):
    """llama.cpp rounds activations to 8 bits beside quantised weights: probabilities are close, tokens may differ."""
    difference, kl, same, gap = _compare(real.path, real, real.params)
    assert difference < 0.03 and kl < 0.01 and same >= COUNT - 4 and gap < 0.5


def test_float32_gives_the_same_ids(real, tmp_path):
    path = tmp_path / "m.gguf"
    write.write_model(path, real.params, real.config, real.tokenizer, FORMATS[real.chat], file_type="F32")
    difference, kl, same, _ = _compare(path, real, real.params)
    assert same == COUNT and difference < 1e-3 and kl < 1e-3
    texts = [("Janet’s ducks lay 16 eggs per day.\n\n  So?", False)]
    assert llama_cpp.tokenize(path, texts)["texts"] == llama_cpp.tokenize(real.path, texts)["texts"]


@pytest.mark.parametrize(("file_type", "limit"), [("Q8_0", 0.05), ("Q4_K_M", 0.06)])
def test_fewer_bits(real, tmp_path, file_type, limit):
    """Against ours with the weights of the same file."""
    path = tmp_path / "m.gguf"
    write.write_model(path, real.params, real.config, real.tokenizer, FORMATS[real.chat], file_type=file_type)
    difference, kl, same, gap = _compare(path, real, read.read_params(file_lib.open_file(path), real.config, "m.gguf"))
    assert difference < limit and kl < 0.02 and same >= COUNT - 4 and gap < 0.5
