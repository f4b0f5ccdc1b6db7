"""Adapters of all linear layers, experts and latent attention included, against the merged weights of each."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint import merge as merge_lib
from s1jax.config.layers import MLA, Dense, Experts, Layer
from s1jax.config.lora import LoraConfig
from s1jax.config.model import Group, ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import programs
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.model import adapters as adapters_lib
from s1jax.model import decoder, quant
from s1jax.model import params as params_lib
from s1jax.model.quant import QTensor
from s1jax.model.quant_groups import GroupQTensor
from tests.engine import cases, reference
from tests.model import family_cases

SETTINGS = {
    "wide": LoraConfig(4, 16.0),
    "narrow": LoraConfig(2, 8.0, "gate_proj,down_proj,kv_b_proj", rslora=True),
}
_LATENT = MLA(num_heads=4, q_rank=32, kv_rank=32, nope_dim=8, rope_dim=8, value_dim=16)
_EXPERTS = Experts(4, 2, 32, "sigmoid", normalize=True, shared_hidden=32)
WHOLE_GROUPS = ModelConfig(  # widths that 32 divides, as groups of int4 need them
    vocab_size=cases.V,
    d_model=64,
    groups=(Group(1, (Layer(_LATENT, Dense(64)),)), Group(2, (Layer(_LATENT, _EXPERTS),))),
    context_length=256,
)
LENGTH = 128  # of the longest sequence
MANY = 12  # slots; more tokens than `grouped` computes one by one
DELIMITERS = cases.random_delimiters(np.random.default_rng(0))
PARAMS = SamplingParams(max_thinking_tokens=20, max_answer_tokens=6, temperature=0)
_RNG = np.random.default_rng(1)
PROMPTS = [_RNG.integers(0, 30, length).tolist() for length in (90, 5)]  # more than a page, several pieces; one piece


def _adapters(config):
    found = {}
    for i, (name, lora) in enumerate(SETTINGS.items()):
        rng, shapes = np.random.default_rng(i), adapters_lib.abstract(config, lora, "float32")
        found[name] = jax.tree.map(lambda x, rng=rng: rng.normal(0, 0.15, x.shape).astype(np.float32), shapes), lora
    return found


def _merged(config, params, adapters):
    """Adapter -> the weights with it."""
    merge = lambda tree, lora: merge_lib.merge(copy.deepcopy(params), tree, config, lora)  # noqa: E731
    return {"": params, **{name: merge(*pair) for name, pair in adapters.items()}}


def _sample(engine, names):
    """A sample for each prompt with each adapter, in the order of the prompts."""
    requests = [EncodedRequest(tuple(p), PARAMS, (), f"with {n!r}", adapter=n) for p in PROMPTS for n in names]
    samples = dict(engine.sample(requests, DELIMITERS))
    return [samples[i] for i in range(len(requests))]


def _expected(config, merged):
    """(prompt, adapter) -> what the rules say, with logits of whole rows of the merged weights."""

    @jax.jit
    def run(params, ids):
        hidden = decoder.forward(params, config, ids, jnp.arange(LENGTH)[None], jnp.ones_like(ids))
        return decoder.logits(params, config, hidden[0])

    found = {}
    for name, params in merged.items():
        params = jax.device_put(params)
        logits = lambda ids, params=params: np.asarray(  # noqa: E731
            run(params, np.pad(np.array([ids], np.int32), ((0, 0), (0, LENGTH - len(ids)))))[len(ids) - 1]
        )
        for i, prompt in enumerate(PROMPTS):
            found[i, name] = reference.run(logits, prompt, PARAMS, DELIMITERS, ())
    assert len({tuple(result.ids) for result in found.values()}) == len(found)
    return found


def _prepare_stacked(engine, params, prepare=Engine._prepare):
    engine._unstacks = False
    return prepare(engine, params)


@pytest.mark.parametrize(
    ("family", "slots", "stacked"), [("qwen3_moe", MANY, False), ("gpt_oss", 1, False), ("deepseek_v3", MANY, True)]
)
def test_sequences_of_one_batch_have_the_tokens_of_their_merged_models(family, slots, stacked, monkeypatch):
    monkeypatch.setattr(programs, "PIECE", 64)
    if stacked:
        monkeypatch.setattr(Engine, "_prepare", _prepare_stacked)
    config = family_cases.config(family)
    params, adapters = family_cases.weights(family), _adapters(config)
    expected = _expected(config, _merged(config, params, adapters))
    names = ["wide", "", "narrow", "wide"]
    samples = _sample(Engine(jax.device_put(params), config=config, slots=slots, adapters=adapters), names)
    for i, sample in enumerate(samples):
        key = i // len(names), names[i % len(names)]
        cases.check(sample, expected[key], key)
        assert bool(sample.cached_tokens) == (i % len(names) == 3), key  # the second one with that adapter


def test_int4_weights_with_adapters_have_the_tokens_of_what_they_stand_for(monkeypatch):
    """In stacked layers, whose products with quantised weights are products of floats on a CPU, too."""
    monkeypatch.setattr(Engine, "_prepare", _prepare_stacked)
    rng, config = np.random.default_rng(2), WHOLE_GROUPS
    shapes = params_lib.abstract_params(config)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), shapes)
    adapters, small = _adapters(config), quant.quantize_params(params, "int4", 32)
    meant = jax.tree.map(_meant, small, is_leaf=lambda leaf: isinstance(leaf, QTensor | GroupQTensor))
    expected = _expected(config, _merged(config, meant, adapters))
    engine = Engine(params, config=config, slots=MANY, weight_dtype="int4", adapters=adapters)
    names = ["", *adapters]
    for i, sample in enumerate(_sample(engine, names)):
        key = i // len(names), names[i % len(names)]
        cases.check(sample, expected[key], key)


def _meant(weight):
    """Quantised weights as floats."""
    if isinstance(weight, QTensor):
        weight = weight.values * jnp.expand_dims(weight.scale, weight.axis)
    elif isinstance(weight, GroupQTensor):
        weight = weight.dequantize(jnp.float32)
    return np.array(weight)
