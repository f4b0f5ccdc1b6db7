"""The models that `benchmarks.serving` serves, as s1jax, transformers and llama.cpp read them.

small   package:countdown_base, 0.8 M parameters.
medium  the decoder of benchmarks/models.py, 46.8 M parameters with random weights, context 4,096, and a tokenizer with
        32,000 tokens of letters. It never ends by itself, so that every answer has the length that was asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import string

import gguf
import numpy as np
import tokenizers

from benchmarks import models
from s1jax.checkpoint import huggingface, huggingface_tokenizer, names, store
from s1jax.text import chat, template
from s1jax.text.tokenizer import Tokenizer

SMALL = "package:countdown_base"
CONFIG = dataclasses.replace(models.CONFIG, context_length=4096)
FORMAT = chat.FORMATS["think"]
_LETTERS = string.ascii_lowercase


def make(folder: pathlib.Path) -> None:
    """Writes the medium model: `folder`/s1jax, /huggingface and /model.gguf, all with the same float32 weights."""
    params, tokenizer = models.random_params(), make_tokenizer()
    store.save_model(folder / "s1jax", params, CONFIG, tokenizer, FORMAT, {"made": "random weights of a benchmark"})
    exported = folder / "huggingface"
    exported.mkdir()
    huggingface.write_model(exported, params, CONFIG, eos=[tokenizer.id_of(FORMAT.turn_end)])
    huggingface_tokenizer.write(exported, tokenizer, FORMAT)
    _write_gguf(folder / "model.gguf", params, tokenizer)


def words(tokenizer: Tokenizer) -> list[str]:
    """Words that are one token each, together with the space before them."""
    found = [f" {a}{b}{c}" for a, b, c in itertools.combinations(_LETTERS, 3)]
    return [word for word in found if len(tokenizer.encode(word)) == 1]


def prompt(rng: np.random.Generator, vocabulary: list[str], count: int) -> str:
    """A text of `count` random words."""
    return "".join(rng.choice(vocabulary, count)).removeprefix(" ")


def _merges() -> list[tuple[str, str]]:
    """Pairs of letters, triples of rising letters after a space, then all triples until the vocabulary is full."""
    pairs = [*itertools.product(_LETTERS, _LETTERS)]
    rising = [a + b + c for a, b, c in itertools.combinations(_LETTERS, 3)]
    triples = [(a + b, c) for a, b, c in itertools.product(_LETTERS, repeat=3)]
    spaced = [("Ġ", word) for word in rising]
    quads = [(a + b, c + d) for a, b, c, d in itertools.product(_LETTERS[:11], repeat=4)]
    return [*pairs, *triples, *spaced, *quads][: CONFIG.vocab_size - 256 - len(FORMAT.special)]


def make_tokenizer() -> Tokenizer:
    """Returns byte-level BPE with exactly `CONFIG.vocab_size` tokens."""
    merges = _merges()
    assert len({a + b for a, b in merges}) == len(merges)
    tokens = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(FORMAT.special))
    found = Tokenizer({"tokenizer.json": made.to_str().encode()})
    assert found.num_ids == CONFIG.vocab_size
    return found


def _write_gguf(path: pathlib.Path, params: object, tokenizer: Tokenizer) -> None:
    """Writes a file of llama.cpp's architecture `qwen2`, all tensors in F32."""
    writer, config = gguf.GGUFWriter(path, "qwen2"), CONFIG
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(max(config.mlp_dims))
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    special = set(FORMAT.special)
    listed = tokenizer.tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(listed)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in listed]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in _merges()])
    writer.add_eos_token_id(tokenizer.id_of(FORMAT.turn_end))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template.to_jinja(FORMAT))
    for name, view in names.views(config, params, "gguf").items():  # type: ignore[arg-type]
        writer.add_tensor(name, np.ascontiguousarray(view, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
