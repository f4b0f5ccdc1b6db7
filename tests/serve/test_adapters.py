"""Adapters as models of a server."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import requests

from s1jax.checkpoint import adapters as peft
from s1jax.checkpoint import merge as merge_lib
from s1jax.cli import serve as serve_command
from s1jax.config.layers import GQA, Experts, Layer
from s1jax.config.lora import LoraConfig
from s1jax.config.model import Group
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib
from tests.engine import cases
from tests.serve import running

PARAMS = SamplingParams(max_thinking_tokens=24, max_answer_tokens=12)
LORA = LoraConfig(4)


MIXTURE = dataclasses.replace(
    running.CONFIG, groups=(Group(1, (Layer(GQA(4, 2, 8, qk_norm=True), Experts(4, 2, 16)),)),), family="qwen3_moe"
)


def _random(config, lora):
    rng, shapes = np.random.default_rng(0), adapters_lib.abstract(config, lora, "float32")
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def adapted(engine, about):
    tree = _random(running.CONFIG, LORA)
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


def test_adapters_of_experts_are_served_from_their_folder(engine, about, tmp_path):
    """The server's thinking is that of the merged weights."""
    tree, params = _random(MIXTURE, LORA), jax.tree.map(np.array, cases.random_weights(MIXTURE))
    peft.write(tmp_path, tree, MIXTURE, LORA, "somebody/base")
    given = serve_command.read_adapters([f"mine={tmp_path}"], "tiny")
    model = dataclasses.replace(engine.model, config=MIXTURE, params=jax.tree.map(jnp.array, params))
    about = dataclasses.replace(about, config=MIXTURE)
    with running.serve(
        lambda: Engine(model, slots=4, cache_length=running.LENGTH, adapters=given),
        about,
        params=PARAMS,
        adapters=given,
    ) as server:
        found = {name: _ask(server, model=name).json()["choices"][0]["message"] for name in ("tiny", "mine")}
    merged = merge_lib.merge(jax.tree.map(np.copy, params), tree, MIXTURE, LORA)
    for name, weights in (("tiny", params), ("mine", merged)):
        alone = Engine(dataclasses.replace(model, params=jax.tree.map(jnp.array, weights)), slots=4)
        (output,) = alone.generate([Request("3 7 1", params=dataclasses.replace(PARAMS, temperature=0))])
        assert found[name]["reasoning_content"] == output.thinking
    assert found["tiny"] != found["mine"]


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
