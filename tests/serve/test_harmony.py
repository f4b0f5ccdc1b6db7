"""A server of a model with gpt-oss's chat format: channels as fields of the reply, effort as a word of the prompt."""

import json

import httpx
import numpy as np
import pytest
import tokenizers

from s1jax.checkpoint import store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.serve import budgets, protocol
from s1jax.serve.protocol import ApiError
from s1jax.serve.reader import Reader
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.engine import cases
from tests.serve import running

FORMAT = chat.FORMATS["harmony"]
CONFIG = ModelConfig.dense(
    vocab_size=136, d_model=16, mlp_dim=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, context_length=640
)
QUESTION = {"messages": [{"role": "user", "content": "What is 1+1?"}], "temperature": 0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A random model that ends thinking and answers, with an id for every ASCII character."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({chr(code): code for code in range(128)}, []))
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(list(FORMAT.special))
    tokenizer = Tokenizer({"tokenizer.json": made.to_str().encode()})
    params = cases.random_weights(CONFIG)
    kernel = params["head"]["kernel"]
    ends = np.isin(FORMAT.special, ("<|end|>", "<|return|>"))
    params = params | {"head": {"kernel": kernel.at[:, 128:134].multiply(np.where(ends, 2.0, 0.0))}}
    folder = tmp_path_factory.mktemp("harmony") / "model"
    store.save_model(folder, params, CONFIG, tokenizer, FORMAT, {})
    return Engine(folder, slots=4)


def test_channels_are_fields_of_the_reply(engine):
    model = engine.model
    about = store.Metadata(model.config, model.tokenizer, model.chat, {})
    few = SamplingParams(max_thinking_tokens=24, max_answer_tokens=12)
    with running.serve(lambda: engine, about, params=few) as server, httpx.Client(base_url=server.url) as client:
        found = {}
        for effort in ("low", "high"):
            reply = client.post("/v1/chat/completions", json={**QUESTION, "reasoning_effort": effort}, timeout=60)
            found[effort] = reply.json()["choices"][0]["message"]
        with client.stream("POST", "/v1/chat/completions", json={**QUESTION, "stream": True}, timeout=60) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
    for effort, message in found.items():
        params = SamplingParams(max_thinking_tokens=24, max_answer_tokens=12, reasoning_effort=effort)
        (want,) = engine.generate(["What is 1+1?"], params)
        assert (message["reasoning_content"], message["content"]) == (want.thinking, want.answer)
        assert want.thinking and not any(token in want.thinking + want.answer for token in FORMAT.special)
    assert found["low"] != found["high"]  # the word stands in the prompt
    (want,) = engine.generate(["What is 1+1?"], few)
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines if json.loads(line)["choices"]]
    texts = ["".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content")]
    assert [text.strip() for text in texts] == [want.thinking, want.answer]


def test_effort_is_a_word_of_the_prompt(engine):
    encoder, prompts = engine.encoder, {}
    for effort in ("", "low", "medium", "high"):
        prompt = encoder.encode_one(Request("q"), SamplingParams(reasoning_effort=effort)).prompt
        prompts[effort] = encoder.decode(prompt)
        assert f"Reasoning: {effort or 'medium'}\n" in prompts[effort]
    assert prompts[""] == prompts["medium"]
    with pytest.raises(UserError, match="the request: reasoning_effort is 'max', but the chat format has low, medium"):
        encoder.encode_one(Request("q"), SamplingParams(reasoning_effort="max"))
    with pytest.raises(UserError, match="reasoning_effort goes with question, not with prompt_ids"):
        encoder.encode_one(Request(prompt_ids=[1]), SamplingParams(reasoning_effort="low"))


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        (
            {"reasoning": {"effort": "high"}, "thinking_budget": 7},
            {"reasoning_effort": "high", "max_thinking_tokens": 7},
        ),
        ({"reasoning_effort": "max"}, {"max_thinking_tokens": 16384}),  # of the server's table, as with other formats
        ({"reasoning_effort": "none"}, {"max_thinking_tokens": 0}),
    ],
)
def test_a_request_sets_the_word_or_a_number(body, given):
    defaults = protocol.Defaults("m", 100_000, prompt_efforts=FORMAT.efforts)
    assert budgets.read(Reader(body), defaults).given == given
    plain = protocol.Defaults("m", 100_000)
    assert "reasoning_effort" not in budgets.read(Reader(body), plain).given
    with pytest.raises(ApiError):
        budgets.read(Reader({"reasoning_effort": "some"}), defaults)
