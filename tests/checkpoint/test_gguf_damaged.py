"""GGUF files whose header says something else than was written, or what no model is like."""

import random

import pytest

from s1jax.checkpoint import names
from s1jax.checkpoint.gguf import file, metadata, read, tokenizer
from s1jax.errors import UserError
from tests.checkpoint import test_gguf
from tests.model.parity_cases import CASES, weights

CONFIG = CASES["llama"]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a good file, tokenizer included."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    test_gguf._write(path, CONFIG, weights(CONFIG), "llama", metadata=test_gguf._small("smollm"))
    return path.read_bytes()


def _read(path):
    """All that launch.convert reads."""
    reader = file.open_file(path)
    config = metadata.read_config(reader, str(path))
    tokenizer.read_tokenizer(reader, str(path))
    return read.read_params(reader, config, str(path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention.head_count_kv": 3}, "m.gguf: model.num_heads 4 is not a multiple of model.num_kv_heads 3"),
        ({"block_count": 4 * 10**9}, "m.gguf has 21 tensors, too few for the 4000000000 layers"),
        ({"feed_forward_length": 4 * 10**9}, r"m.gguf: tensor .*ffn_.* says \[.*4000000000"),
        ({"block_count": 2.0}, "m.gguf: the metadata llama.block_count is of type float, not int"),
        ({"tokenizer.ggml.tokens": "a"}, "m.gguf: the metadata tokenizer.ggml.tokens is of type str, not list"),
        ({"tokenizer.ggml.tokens": [1], "tokenizer.ggml.token_type": [1]}, "m.gguf has tokens or merges that are no"),
    ],
)
def test_metadata_that_no_model_has(tmp_path, monkeypatch, changes, sentence):
    path = tmp_path / "m.gguf"
    test_gguf._write(path, CONFIG, weights(CONFIG), "llama", metadata={**test_gguf._small("smollm"), **changes})
    monkeypatch.setattr(names, "allocate", lambda *_: pytest.fail("took memory"))
    with pytest.raises(UserError, match=sentence):
        _read(path)


def test_a_token_that_is_no_text(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content.replace(b"<|im_end|>", b"\xff|im_end|>"))
    with pytest.raises(UserError, match=r"m.gguf: the metadata tokenizer.ggml.tokens is damaged"):
        _read(path)


def test_flipped_bits_give_weights_or_a_sentence(tmp_path, content):
    draw = random.Random(0)
    path = tmp_path / "m.gguf"
    for _ in range(150):
        damaged = bytearray(content)
        damaged[draw.randrange(1200)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            _read(path)
        except UserError as error:
            assert "m.gguf" in str(error)
