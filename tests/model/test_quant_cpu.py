"""Products of a CPU with int8 and int4 weights, against numpy with the dequantised weights in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s1jax.config.layers import Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts, linear, quant, quant_cpu
from s1jax.model.embedding import embed
from s1jax.model.quant_groups import quantize_groups

RNG = np.random.default_rng(0)


def dequantised(kernel: quant_cpu.IntegerKernel) -> np.ndarray:
    """float64 [D, F] of what the kernel stands for, from its definition."""
    if kernel.multipliers is None:
        return (np.asarray(kernel.codes, np.float64) * np.asarray(kernel.scale, np.float64)[:, None]).T
    codes = np.asarray(kernel.codes).astype(np.int64)
    signed = np.concatenate([codes % 16, codes // 16], 1) - 8  # the groups of 32 inputs in order
    steps = np.floor(signed * np.asarray(kernel.multipliers).astype(np.int64) / 256 + 0.5)
    assert np.abs(steps).max() <= 127
    return steps.reshape(-1, codes.shape[-1]) * np.asarray(kernel.scale, np.float64)


def kernel(kind: str, inputs: int, outputs: int) -> tuple[np.ndarray, quant_cpu.IntegerKernel]:
    """Weights [D, F] with outliers, and their form for a CPU."""
    weights = RNG.normal(0, 0.2, (inputs, outputs)) * RNG.choice([1, 8], (inputs, outputs), p=[0.99, 0.01])
    weights = jnp.asarray(weights, jnp.float32)
    if kind == "int8":
        return np.asarray(weights), jax.jit(lambda x: quant.quantize(x, (-2,)).integer_kernel())(weights)
    small = jax.jit(lambda x: quantize_groups(x, 1, "int4", 32))(weights)
    return np.asarray(jax.jit(lambda s: s.dequantize(jnp.float32))(small)), jax.jit(lambda s: s.integer_kernel())(small)


@pytest.mark.parametrize("rows", [1, 15, 16, 40])  # integers, and from 16 on float32
@pytest.mark.parametrize(("kind", "inputs", "outputs"), [("int8", 96, 37), ("int4", 96, 40), ("int8", 700, 900)])
def test_products_are_those_of_the_dequantised_weights(kind, inputs, outputs, rows):
    """(700, 900): more weights than a block, which does not divide them."""
    _, small = kernel(kind, inputs, outputs)
    x = RNG.normal(0, 1, (rows, inputs)) * RNG.choice([1, 30], inputs, p=[0.98, 0.02])  # a few large channels
    x = jnp.asarray(x, jnp.float32)
    found = jax.jit(linear.matmul)(x, small)
    expected = np.asarray(x, np.float64) @ dequantised(small)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < (2e-4 if rows < 16 else 2e-6)


def test_int4_weights_are_off_by_half_a_step_of_the_output():
    float_scales, small = kernel("int4", 256, 30)
    steps = np.asarray(small.scale)
    assert np.all(np.abs(dequantised(small) - float_scales) <= 0.55 * steps)
    assert np.all(steps <= np.abs(float_scales).max(0) / 127 * 1.15)


def test_rows_do_not_depend_on_each_other_and_zeros_are_zeros():
    _, small = kernel("int8", 64, 24)
    x = jnp.asarray(RNG.normal(0, 1, (9, 64)), jnp.float32).at[3].set(0)
    whole = jax.jit(linear.matmul)(x, small)
    alone = np.stack([jax.jit(linear.matmul)(x[i : i + 1], small)[0] for i in range(9)])
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(whole[3], 0)


def test_kernels_with_several_axes_and_embeddings_keep_their_order():
    wide = RNG.normal(0, 0.2, (2, 32, 5)).astype(np.float32)  # [heads, head_dim], outputs
    query = RNG.normal(0, 0.2, (64, 2, 5)).astype(np.float32)
    table = RNG.normal(0, 0.2, (11, 64)).astype(np.float32)
    x = jnp.asarray(RNG.normal(0, 1, (3, 64)), jnp.float32)
    for array, axes in ((wide, 2), (query, 1)):

        @jax.jit
        def products(x, array=array, axes=axes):
            small = quant.quantize(array, tuple(range(-3, -3 + axes))), quantize_groups(array, axes, "int4", 32)
            return [(linear.matmul(x, one.integer_kernel()), linear.matmul(x, one)) for one in small]

        for found, expected in products(x):
            np.testing.assert_allclose(found, expected, rtol=0, atol=0.03)
            assert np.abs(expected).max() > 1

    @jax.jit
    def of_table(x):
        rows = quant.quantize(table).integer_kernel()
        return embed(rows, tokens, jnp.float32), linear.output_logits(x[None], rows, tied=True)

    tokens = jnp.array([[10, 0, 3]])
    embedded, logits = of_table(x)
    np.testing.assert_allclose(embedded, table[np.asarray(tokens)], atol=0.003)
    np.testing.assert_allclose(logits[0], x @ table.T, atol=0.05)


@pytest.mark.parametrize("rows", [2, 24])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_joined_kernels_compute_what_each_does_with_its_bias_and_adapters(kind, rows):
    def projections(kernels):
        found = [linear.Projection((64,), (outputs // 8, 8), jnp.float32, nnx.Rngs(outputs), True) for outputs in sizes]
        for one, weight in zip(found, kernels, strict=True):
            one.kernel = nnx.Param(weight)
            one.bias = nnx.Param(jnp.arange(1.0, math.prod(one.out) + 1).reshape(one.out))
        return found

    def adapted(weight, outputs):
        a, b = factors[outputs]
        return linear.BatchAdapted(weight, a, b, jnp.array([1.0, 0.5]), jnp.array([-1, 1]))

    sizes = (40, 16, 24)
    kernels = [kernel(kind, 64, outputs)[1] for outputs in sizes]
    factors = {
        n: [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((2, 64, 3), (2, 3, n))] for n in sizes
    }
    x = jnp.asarray(RNG.normal(size=(2, rows // 2, 64)), jnp.float32)
    for first_has_one in (True, False):
        chosen = [first_has_one, not first_has_one, False]

        def wrapped(weights, chosen=chosen):
            return [adapted(w, n) if own else w for w, n, own in zip(weights, sizes, chosen, strict=True)]

        separate = projections(wrapped(kernels))
        joined = projections(wrapped(quant_cpu.join(kernels)))
        expected = [one(x) for one in separate]
        for found, like in zip(linear.apply_all(joined, x), expected, strict=True):
            np.testing.assert_allclose(found, like, rtol=2e-6, atol=2e-5)
        for found, like in zip(linear.apply_all(separate, x), expected, strict=True):
            np.testing.assert_array_equal(found, like)


DENSE = ModelConfig.dense(
    vocab_size=61, d_model=64, mlp_dim=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, qk_norm=True,
    tied_embeddings=True,
)  # fmt: skip
_LAYER = DENSE.groups[0].pattern[0]
EXPERTS = dataclasses.replace(
    DENSE, groups=(Group(1, (_LAYER,)), Group(1, (Layer(_LAYER.attention, Experts(8, 2, 32, shared_hidden=32)),)))
)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_model_with_experts_computes_what_its_dequantised_weights_do(kind, monkeypatch):
    """Prefill of 24 tokens, in float32 and in blocks of an expert's rows, then a step of integers, expert by expert."""
    params = decoder.abstract_params(EXPERTS)
    params = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(0, 0.25, leaf.shape), leaf.dtype), params)
    plain = jax.jit(lambda p: layouts.unstack(p, EXPERTS, False))(params)
    group = 32 if kind == "int4" else 0

    def unstacked():
        return jax.jit(lambda p: layouts.unstack(quant.quantize_params(p, kind, group), EXPERTS, True))(params)

    joined = unstacked()
    monkeypatch.setattr(layouts, "_join", lambda tree: tree)
    small = unstacked()

    def is_small(leaf):
        return isinstance(leaf, quant_cpu.IntegerKernel)

    def wide(leaf, like):
        if not is_small(leaf):
            return leaf
        if leaf.scale.ndim == 1:
            found = dequantised(leaf)
            return (found.T if like.shape == (61, 64) else found).reshape(like.shape).astype(np.float32)
        return np.stack([wide(jax.tree.map(lambda a: a[e], leaf), like[e]) for e in range(8)])  # noqa: B023

    assert sum(map(is_small, jax.tree.leaves(small, is_leaf=is_small))) == 2 * 7 + 3 + 1  # a shared expert, embedding
    expected_of = jax.tree.map(wide, small, plain, is_leaf=is_small)
    ids = jnp.asarray(RNG.integers(61, size=(1, 25)), jnp.int32)

    @jax.jit
    def run(params):
        cache = cache_lib.init_cache(EXPERTS, 1, 32, page=8)
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
        first, cache = decoder.forward_cached(params, EXPERTS, ids[:, :24], cache, jnp.full(1, 24))
        second, _ = decoder.forward_cached(params, EXPERTS, ids[:, 24:], cache, jnp.full(1, 1))
        return jnp.concatenate([first, second], 1)

    expected = run(expected_of)
    found = run(joined)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found, run(small), rtol=0, atol=1e-5)
    assert np.abs(run(plain) - expected).max() > (0.1 if kind == "int4" else 0.01)
