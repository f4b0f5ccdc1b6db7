"""Adapters as models of a server."""

import dataclasses

import jax
import numpy as np
import pytest
import requests

from s1jax.cli import serve as serve_command
from s1jax.config.lora import LoraConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib
from tests.serve import running

PARAMS = SamplingParams(max_thinking_tokens=24, max_answer_tokens=12)
LORA = LoraConfig(4)


@pytest.fixture(scope="module")
def adapted(engine, about):
    rng = np.random.default_rng(0)
    shapes = adapters_lib.abstract(running.CONFIG, LORA, "float32")
    tree = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    made = Engine(engine.model, slots=4, cache_length=running.LENGTH, adapters={"mine": (tree, LORA)})
    with running.serve(lambda: made, about, params=PARAMS, adapters=("mine",)) as server:
        yield server, made


def _ask(server, **fields):
    body = {"messages": [{"role": "user", "content": "3 7 1"}], "temperature": 0, **fields}
    return requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_a_request_asks_for_an_adapter_by_the_name_of_its_model(adapted):
    server, engine = adapted
    texts = {}
    for name in ("tiny", "mine"):
        reply = _ask(server, model=name).json()
        assert reply["model"] == name
        message = reply["choices"][0]["message"]
        texts[name] = message["reasoning_content"], message["content"]
        asked = Request("3 7 1", params=dataclasses.replace(PARAMS, temperature=0), adapter="mine" * (name == "mine"))
        (output,) = engine.generate([asked])
        assert texts[name][0] == output.thinking
    assert texts["tiny"] != texts["mine"]


def test_adapters_are_listed_and_others_are_refused(adapted):
    server, _ = adapted
    cards = requests.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [("tiny", None), ("mine", "tiny")]
    assert requests.get(f"{server.url}/v1/models/mine", timeout=60).json()["id"] == "mine"
    refused = _ask(server, model="yours")
    assert refused.status_code == 404 and "write 'tiny', 'mine'" in refused.json()["error"]["message"]
    body = {"model": "mine", "prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
    refused = requests.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert refused.status_code == 400 and "computed without adapters" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["mine"], "write NAME=DIR"), (["a=x", "a=y"], "two models are called 'a'"), (["tiny=x"], "two models")],
)
def test_names_that_cannot_be_served_are_refused(texts, message):
    with pytest.raises(UserError, match=message):
        serve_command.read_adapters(texts, "tiny")
