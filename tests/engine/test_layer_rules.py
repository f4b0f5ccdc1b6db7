"""The engine on models of alternating layers, and on one whose rotary frequencies go by a request's limit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.config.sampling import SamplingParams
from s1jax.engine import prompt_score, sequence
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.model import decoder
from tests.engine import cases, reference
from tests.engine.cases import V

LENGTH, ORIGINAL = 96, 40
LOCAL = GQA(4, 2, 8, window=6, rope="local", sinks=True, qkv_bias=True, out_bias=True)
MIXED = ModelConfig(
    vocab_size=V,
    d_model=32,
    groups=(
        Group(1, (Layer(LOCAL, Dense(48, "gelu_tanh"), "both"), Layer(GQA(4, 2, 8, softcap=2.0), Dense(48), "both"))),
        Group(1, (Layer(LOCAL, Dense(48, "gelu_tanh"), "both"),)),
    ),
    local_rope_theta=100.0,
    norm_offset=True,
    scale_embeddings=True,
    final_softcap=4.0,
    context_length=LENGTH,
    tied_embeddings=True,
)
_LONG = RopeScaling("longrope", 2.0, ORIGINAL, short_factor=(1.0, 1.0, 2.0, 2.0), long_factor=(2.0, 4.0, 6.0, 9.0))
LONG = ModelConfig(
    V, 32, (Group(2, (Layer(GQA(4, 2, 8), Dense(48)),)),), rope_theta=100.0, rope_scaling=_LONG, context_length=LENGTH
)


def _next_logits(params, config):
    """The whole sequence from its start, without a cache."""

    @jax.jit
    def run(tokens):
        hidden = decoder.forward(params, config, tokens, jnp.arange(LENGTH)[None], jnp.ones_like(tokens))
        return decoder.logits(params, config, hidden[0])

    def logits(ids):
        return np.asarray(run(np.pad(np.array([ids], np.int32), ((0, 0), (0, LENGTH - len(ids))))))[len(ids) - 1]

    return logits


def _always(factors):
    scaling = dataclasses.replace(_LONG, short_factor=factors, long_factor=factors)
    return dataclasses.replace(LONG, rope_scaling=scaling)


def test_alternating_layers():
    """Prompts beyond two windows, in pieces."""
    rng = np.random.default_rng(0)
    params, delimiters = cases.random_weights(MIXED), cases.random_delimiters(rng)
    engine = Engine(params, config=MIXED, slots=8, cache_length=LENGTH)
    prompts = [rng.integers(0, 30, n).tolist() for n in (1, 5, 13, 29, 40, 30)]
    controls = [cases.random_controls(rng) for _ in prompts]
    columns = zip(prompts, controls, strict=True)
    requests = [EncodedRequest(tuple(p), control, (), f"row {i}") for i, (p, control) in enumerate(columns)]
    samples = dict(engine.sample(requests, delimiters))
    logits = _next_logits(params, MIXED)
    for i, (prompt, control) in enumerate(zip(prompts, controls, strict=True)):
        cases.check(samples[i], reference.run(logits, prompt, control, delimiters, ()), (i, control))


def test_longrope_goes_by_the_limit_and_shares_no_pages_between_its_forms():
    rng = np.random.default_rng(1)
    params, delimiters = cases.random_weights(LONG), cases.random_delimiters(rng)
    engine = Engine(params, config=LONG, slots=4, cache_length=LENGTH)
    prompt = rng.integers(0, 30, 13).tolist()
    controls = [SamplingParams(max_thinking_tokens=4, max_answer_tokens=n) for n in (4, 40, 5, 41)]
    requests = [EncodedRequest(tuple(prompt), control, (), f"row {i}") for i, control in enumerate(controls)]
    is_long = [sequence.longest(request, delimiters) > ORIGINAL for request in requests]
    assert is_long == [False, True, False, True]
    samples = dict(engine.sample(requests, delimiters))
    expected = {
        long: _next_logits(params, _always(_LONG.long_factor if long else _LONG.short_factor)) for long in (False, True)
    }
    for i, control in enumerate(controls):
        want = reference.run(expected[is_long[i]], prompt, control, delimiters, ())
        cases.check(samples[i], want, i)
    first = [expected[long](prompt) for long in (False, True)]
    assert np.abs(first[0] - first[1]).max() > 0.1


def test_scores_of_prompts_go_by_their_length():
    params = cases.random_weights(LONG)
    ids = np.random.default_rng(2).integers(0, V, LENGTH).tolist()
    for length, factors in ((ORIGINAL, _LONG.short_factor), (ORIGINAL + 1, _LONG.long_factor)):
        found, want = (
            prompt_score.score_prompts(params, config, [ids[:length]])[0].logprobs
            for config in (LONG, _always(factors))
        )
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-4)
