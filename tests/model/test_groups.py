"""A decoder in several groups of layers: the same numbers as in one group, and layers that differ."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint import names
from s1jax.config.layers import Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts, quant
from tests.model import parity_cases

ONE = ModelConfig.dense(**{**parity_cases.CASES["qwen3_tied_one_head"].flat(), "num_layers": 4})
LAYER = ONE.groups[0].pattern[0]
# A pattern of two layers, then a group of two repeats of one.
SPLIT = dataclasses.replace(ONE, groups=(Group(1, (LAYER, LAYER)), Group(2, (LAYER,))))
DIFFERENT = dataclasses.replace(
    ONE, groups=(Group(2, (LAYER, Layer(LAYER.attention, Dense(24)))),), tied_embeddings=False
)
TOKENS = parity_cases.tokens(ONE, (2, 12))


def _split(params):
    """The weights of ONE as SPLIT has them."""
    parts = {"layers": slice(0, 1), "layers_0_1": slice(1, 2), "layers_1_0": slice(2, 4)}
    stacks = {name: jax.tree.map(lambda a, part=part: a[part], params["layers"]) for name, part in parts.items()}
    return {**params, **stacks}


def _loss(params, config, remat):
    positions = jnp.broadcast_to(jnp.arange(12), TOKENS.shape)
    hidden = decoder.forward(params, config, TOKENS, positions, jnp.ones_like(TOKENS), remat=remat)
    logits = decoder.logits(params, config, hidden)
    return jnp.sum(jnp.sin(logits)), logits


def _cached(params, config, unstack_pages=False):
    cache = cache_lib.init_cache(config, 2, 16, page=8)
    if unstack_pages:
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
    hidden, _ = jax.jit(decoder.forward_cached, static_argnums=1)(params, config, TOKENS, cache, jnp.full(2, 12))
    return decoder.logits(params, config, hidden)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_groups_give_the_logits_and_gradients_of_one_group(remat):
    params = parity_cases.weights(ONE)
    run = jax.jit(jax.grad(_loss, has_aux=True), static_argnums=(1, 2))
    gradients, logits = run(params, ONE, remat)
    split_gradients, split_logits = run(_split(params), SPLIT, remat)
    np.testing.assert_allclose(split_logits, logits, rtol=0, atol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)  # noqa: E731
    jax.tree.map(close, split_gradients, _split(gradients))


def test_groups_decode_as_one_group_in_every_layout():
    params = parity_cases.weights(ONE)
    expected = _cached(params, ONE)
    split = _split(params)
    np.testing.assert_allclose(_cached(split, SPLIT), expected, rtol=0, atol=1e-5)
    for transpose_kernels in (False, True):
        own = layouts.unstack(split, SPLIT, transpose_kernels)
        np.testing.assert_allclose(_cached(own, SPLIT, True), expected, rtol=0, atol=1e-5)
    ours, theirs = quant.quantize_params(split), quant.quantize_params(params)
    np.testing.assert_allclose(_cached(ours, SPLIT), _cached(theirs, ONE), rtol=0, atol=1e-4)


def test_groups_have_the_tensors_of_one_group():
    params = parity_cases.weights(ONE)
    ours, theirs = (names.views(c, p, "huggingface") for c, p in ((SPLIT, _split(params)), (ONE, params)))
    assert ours.keys() == theirs.keys() and names.shapes(SPLIT, "gguf") == names.shapes(ONE, "gguf")
    for name, view in ours.items():
        np.testing.assert_array_equal(view, theirs[name], err_msg=name)


def test_layers_that_differ_run_whole_and_cached():
    params = parity_cases.weights(DIFFERENT)
    shapes = jax.tree.map(lambda leaf: leaf.shape, decoder.abstract_params(DIFFERENT))
    assert jax.tree.map(np.shape, params) == shapes
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == DIFFERENT.num_params
    axes = decoder.logical_axes(DIFFERENT)
    assert axes["layers_0_1"] == axes["layers"] and axes["layers"]["mlp"]["up"]["kernel"][0] == "layers"
    _, logits = jax.jit(_loss, static_argnums=(1, 2))(params, DIFFERENT, "none")
    np.testing.assert_allclose(_cached(params, DIFFERENT), logits, rtol=0, atol=1e-4)
