"""Formats whose delimiters are one special id, or many ordinary ones, through the engine against the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from s1jax.checkpoint import store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import encoding
from s1jax.engine import rows as rows_lib
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.engine import cases, reference

LENGTH = 320
CONFIG = ModelConfig.dense(
    vocab_size=144, d_model=32, mlp_dim=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, context_length=LENGTH
)
SPECIAL = sorted({token for name in ("s1_plain", "think", "think_r1") for token in chat.FORMATS[name].special})
# gpt-oss's in full but for the text of its system turn, which is many ids of one character.
HARMONY = dataclasses.replace(
    chat.FORMATS["harmony"],
    before_question="<|start|>system<|message|>Reasoning: medium\n<|end|><|start|>user<|message|>",
)
WAITS = ("Wait", "", " Hmm, let me check", "\n")


def character_tokenizer(special=SPECIAL):
    """An id for every ASCII character and for every special token of the formats."""
    made = tokenizers.Tokenizer(models.BPE({chr(code): code for code in range(128)}, []))
    made.decoder = decoders.Fuse()
    made.add_special_tokens(list(special))
    return Tokenizer({"tokenizer.json": made.to_str().encode()})


@pytest.fixture(scope="module")
def params():
    """Delimiters, which are special tokens or begin with `<`, are what the model likes to say."""
    weights = cases.random_weights(CONFIG)
    liked = np.array([ord("<"), *range(128, 128 + len(SPECIAL))])
    return weights | {"head": {"kernel": weights["head"]["kernel"].at[:, liked].multiply(3)}}


def random_rows(rng):
    for i in range(16):
        most = int(rng.choice([0, 1, 5, 40, 60]))
        yield {
            "question": f"q{i} " * int(rng.integers(1, 6)),
            "max_thinking_tokens": most,
            "min_thinking_tokens": int(rng.integers(0, most + 1)),
            "num_waits": int(rng.integers(0, 4)),
            "wait": WAITS[i % 4],
            "temperature": float(rng.choice([0, 1.5])),
            "max_answer_tokens": int(rng.integers(1, 12)),
            "seed": i,
        }


@pytest.mark.parametrize("name", ["think", "think_r1", "several ids", "harmony"])
def test_equals_the_reference(params, tmp_path, name):
    tokenizer, several = character_tokenizer(HARMONY.special if name == "harmony" else SPECIAL), name == "several ids"
    fmt = HARMONY if name == "harmony" else chat.FORMATS["s1_plain" if several else name]
    fmt = chat.with_delimiters(tokenizer, fmt, "<reasoning>", "</reasoning>") if several else fmt
    store.save_model(tmp_path / "model", params, CONFIG, tokenizer, fmt, {})
    engine = Engine(tmp_path / "model", slots=8, cache_length=LENGTH)
    encode, rows = encoding.Encoder(engine.model), list(random_rows(np.random.default_rng(3)))

    @jax.jit
    def all_logits(tokens):
        hidden = decoder.forward(params, CONFIG, tokens, jnp.arange(LENGTH)[None], jnp.ones_like(tokens))
        return decoder.logits(params, CONFIG, hidden[0])

    def next_logits(ids):
        tokens = np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(all_logits(tokens))[len(ids) - 1]

    outputs = rows_lib.generate(engine, rows)
    for row, output in zip(rows, outputs, strict=True):
        request = encode.encode_one(rows_lib.request(row, SamplingParams(), "row"), SamplingParams())
        delimiters = encode.delimiters
        assert len(delimiters.think_start) > 9 if several or fmt is HARMONY else len(delimiters.think_start) <= 2
        want = reference.run(next_logits, request.prompt, request.params, delimiters, request.wait)
        assert (output["ids"], output["forced"]) == (want.ids, want.forced), row
        for field in ("thinking_tokens", "answer_tokens", "waits", "thinking_end", "answer_end"):
            assert output[field] == getattr(want, field), row
        if output["thinking_end"] == "cut":
            assert output["answer"].startswith("Final Answer:")
    assert {output["thinking_end"] for output in outputs} == {"natural", "cut"}
    assert sum(output["waits"] for output in outputs) > 5


def test_a_system_prompt_takes_the_place_of_the_formats_own(params, tmp_path):
    tokenizer, fmt = character_tokenizer(), chat.FORMATS["s1"]
    store.save_model(tmp_path / "model", params, CONFIG, tokenizer, fmt, {})
    engine = Engine(tmp_path / "model", slots=4, cache_length=LENGTH)
    text = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    few = SamplingParams(max_thinking_tokens=5, max_answer_tokens=5)
    written = {name: {"prompt_ids": tokenizer.encode(text.format(name))} for name in ("Be brief.", "Be long.")}
    want = [row["ids"] for row in rows_lib.generate(engine, list(written.values()), few)]
    rows = [{"question": "q"}, {"question": "q", "system": "Be long."}, {"question": "q", "system": None}]
    outputs = rows_lib.generate(engine, rows, few, system="Be brief.")
    assert [row["ids"] for row in outputs] == [want[0], want[1], want[0]] and want[0] != want[1]
    assert [row["controls"]["system"] for row in outputs] == ["Be brief.", "Be long.", "Be brief."]
    assert "system" not in rows_lib.generate(engine, rows[:1], few)[0]["controls"]
    for wrong in ({"question": "q", "system": 3}, {"prompt_ids": [1], "system": "a"}):
        with pytest.raises(UserError, match="row 0: system "):
            rows_lib.generate(engine, [wrong], few)
    with pytest.raises(UserError, match="system is 3; it must be a string"):
        rows_lib.generate(engine, rows, few, system=3)
