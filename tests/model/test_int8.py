"""Weights in int8 against the same weights in float32, dequantised by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts, quant
from s1jax.model.quant import QTensor
from tests.model import parity_cases
from tests.model.parity_cases import CASES, SHARED, dequantised


@pytest.mark.parametrize("case", CASES)
def test_every_matrix_is_off_by_half_a_scale_at_most(case):
    params = parity_cases.weights(CASES[case])
    quantised = jax.jit(quant.quantize_params)(params)
    flat, found = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (params, dequantised(quantised)))
    whole = jax.tree_util.tree_leaves_with_path(quantised, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    scales = {path: leaf.scale for path, leaf in whole if isinstance(leaf, QTensor)}
    assert flat.keys() == found.keys()
    assert len(scales) == 7 + 1  # seven projections, and the output projection or the tied embedding
    for path, weight in flat.items():
        scale = scales.get(path)
        if scale is None:
            np.testing.assert_array_equal(found[path], weight)
            continue
        assert dict(whole)[path].values.dtype == np.int8
        shared = (-1,) if path[-1].key == "embedding" else SHARED.get(path[-2].key, (-2,))
        assert np.all(np.abs(found[path] - weight) <= np.expand_dims(np.asarray(scale), shared) * 0.50001)
        np.testing.assert_allclose(scale, np.abs(weight).max(shared) / 127, rtol=1e-6)


@pytest.mark.parametrize("case", ["qwen2", "qwen3_tied_one_head"])
def test_logits_are_those_of_the_dequantised_weights(case):
    config, params = CASES[case], parity_cases.weights(CASES[case])
    quantised = jax.jit(quant.quantize_params)(params)
    apart = jax.jit(layouts.unstack, static_argnums=(1, 2))(quantised, config, False)
    tokens = jnp.asarray(parity_cases.tokens(config, (2, 24)))
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)

    @jax.jit
    def logits(params):
        hidden = decoder.forward(params, config, tokens, positions, jnp.ones_like(tokens))
        return decoder.logits(params, config, hidden)

    @jax.jit
    def cached(params):
        empty = cache_lib.init_cache(config, 2, 24, page=16)
        hidden, _ = decoder.forward_cached(params, config, tokens, empty, jnp.full(2, 24))
        return decoder.logits(params, config, hidden)

    expected = logits(dequantised(quantised))
    for found in (logits(quantised), cached(quantised), cached(apart)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - logits(params)).max() > 1e-3  # int8 was used


@pytest.mark.parametrize("names", [("gate", "up", "down"), ("down",)])
def test_a_chunked_mlp_refuses_them(names):
    config, params = CASES["qwen2"], parity_cases.weights(CASES["qwen2"])
    plain, quantised = params["layers"]["mlp"], jax.jit(quant.quantize_params)(params)["layers"]["mlp"]
    mlp = {**plain, **{name: quantised[name] for name in names}}
    params = {**params, "layers": {**params["layers"], "mlp": mlp}}
    tokens = jnp.zeros((1, 8), jnp.int32)
    with pytest.raises(ValueError, match=f"mlp_chunks is 2, .* {', '.join(['QTensor'] * len(names))} kernels"):
        decoder.forward(params, config, tokens, jnp.arange(8)[None], jnp.ones_like(tokens), mlp_chunks=2)
