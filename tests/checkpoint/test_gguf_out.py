"""GGUF export: read back by gguf-py and ourselves, and run by llama.cpp itself."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from s1jax.checkpoint import names
from s1jax.checkpoint.gguf import file as file_lib
from s1jax.checkpoint.gguf import metadata, read, write
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.text.chat import FORMATS
from s1jax.text.tokenizer import Tokenizer
from tests.checkpoint import llama_cpp
from tests.model.parity_cases import CASES, weights

VOCAB = 272


def byte_tokenizer():
    """Every byte, some merges, and the tokens of ChatML."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u0120", "a"), ("a", "b"), ("1", "2")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    about = {"eos_token": "<|im_end|>"}
    return Tokenizer(
        {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": json.dumps(about).encode()}, "bytes"
    )


TOKENIZER = byte_tokenizer()
CHAT = FORMATS["s1_plain"]
CONFIGS = {name: dataclasses.replace(config, vocab_size=VOCAB) for name, config in CASES.items()}
CONFIGS["qwen2_yarn"] = dataclasses.replace(CONFIGS["qwen2_yarn"], d_model=96)
DENSE = [name for name in CONFIGS if name != "qwen3_yarn_exact"]


def export(path, config, params, file_type="F32"):
    return write.write_model(path, params, config, TOKENIZER, CHAT, file_type=file_type, name="tiny")


def greedy(params, config, prompt, count=24):
    """Our greedy ids and the probabilities of the first one."""
    length = len(prompt) + count

    @jax.jit
    def logits(params, row):
        place = jnp.arange(length)[None]
        hidden = decoder.forward(params, config, row, place, jnp.ones_like(row), dtype=jnp.float32)
        return decoder.logits(params, config, hidden)

    ids, params, first = list(prompt), jax.tree.map(jnp.asarray, params), None
    for _ in range(count):
        row = np.zeros((1, length), np.int32)
        row[0, : len(ids)] = ids
        found = np.asarray(logits(params, row))[0, len(ids) - 1]
        first = np.asarray(jax.nn.softmax(found)) if first is None else first
        ids.append(int(found.argmax()))
    return ids[len(prompt) :], first


@pytest.mark.parametrize("name", DENSE)
def test_a_file_gives_the_model_back(tmp_path, name):
    config = CONFIGS[name]
    params = weights(config)
    export(tmp_path / "m.gguf", config, params)
    file = file_lib.open_file(tmp_path / "m.gguf")
    assert metadata.read_config(file, "m.gguf") == config
    found = names.views(config, read.read_params(file, config, "m.gguf"), "gguf")
    for tensor, view in names.views(config, params, "gguf").items():
        np.testing.assert_array_equal(found[tensor], view, err_msg=tensor)


@pytest.mark.parametrize("name", DENSE)
def test_llama_cpp_gives_our_ids(tmp_path, name):
    config = CONFIGS[name]
    params = weights(config)
    export(tmp_path / "m.gguf", config, params)
    prompt = np.random.default_rng(3).integers(256, size=70)
    ids, probabilities = llama_cpp.run(tmp_path / "m.gguf", prompt)
    ours, first = greedy(params, config, prompt)
    assert ids == ours
    assert max(abs(p - first[i]) for i, p in probabilities.items()) < 2e-3


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            CASES["qwen2_yarn"],
            "qwen2 does not hold this model: .*6 heads of 16 dimensions are not as wide as the model, 48",
        ),
        (
            CASES["qwen3_yarn_exact"],
            "computes with rope_scaling.truncate True, and this model has False; it would give other",
        ),
        (dataclasses.replace(CASES["llama"], family=""), "model.family is '', which llama.cpp does not know"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, config, sentence):
    with pytest.raises(UserError, match=sentence):
        export(tmp_path / "m.gguf", config, weights(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file_type", "sentence"),
    [("Q4_0", "tensor token_embd.weight has rows of 48 weights, which blocks of 32 do not divide; Q4_0 cannot")],
)
def test_widths_that_no_block_divides(tmp_path, file_type, sentence):
    with pytest.raises(UserError, match=sentence):
        export(tmp_path / "m.gguf", CONFIGS["llama"], weights(CONFIGS["llama"]), file_type)
    assert not list(tmp_path.iterdir())


def test_weights_that_a_type_cannot_hold(tmp_path):
    params = weights(CONFIGS["llama"])
    params["layers"]["attention"]["out"]["kernel"][1, 0, 0, 0] = 1e6
    with pytest.raises(UserError, match=r"tensor blk.1.attn_output.weight cannot be written as F16: a weight of 1e"):
        export(tmp_path / "m.gguf", CONFIGS["llama"], params, "F16")
    assert not list(tmp_path.iterdir())
