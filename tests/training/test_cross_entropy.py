"""Chunked cross-entropy against float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.training.losses.cross_entropy import cross_entropy

B, T, D, V = 3, 11, 16, 37


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    weights = rng.random((B, T)) * (rng.random((B, T)) < 0.6)
    return (
        rng.normal(size=(B, T, D)).astype(np.float32),
        rng.normal(size=(D, V)).astype(np.float32),
        rng.integers(V, size=(B, T)).astype(np.int32),
        weights.astype(np.float32),
    )


def reference(hidden, kernel, targets, weights):
    """Loss and its gradients in float64."""
    hidden, kernel, weights = (x.astype(np.float64) for x in (hidden, kernel, weights))
    logits = hidden @ kernel
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = np.take_along_axis(logs, targets[..., None], -1)[..., 0]
    d_logits = (np.exp(logs) - np.eye(V)[targets]) * weights[..., None]
    return -(weights * picked).sum(), d_logits @ kernel.T, np.einsum("btd,btv->dv", hidden, d_logits)


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_value_and_gradients_equal_float64(inputs, chunk):
    value, grads = jax.value_and_grad(lambda h, k: 2.5 * cross_entropy(h, k, *inputs[2:], chunk), (0, 1))(*inputs[:2])
    expected, *expected_grads = reference(*inputs)
    np.testing.assert_allclose(value, 2.5 * expected, rtol=1e-6)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, 2.5 * theirs, rtol=1e-5, atol=1e-5)


def test_value_without_differentiation(inputs):
    np.testing.assert_allclose(cross_entropy(*inputs, 4), reference(*inputs)[0], rtol=1e-6)


def test_large_logits_do_not_overflow(inputs):
    hidden, kernel, targets, weights = inputs
    value, grad = jax.value_and_grad(lambda h: cross_entropy(h, kernel, targets, weights, 4))(1e3 * hidden)
    np.testing.assert_allclose(value, reference(1e3 * hidden, kernel, targets, weights)[0], rtol=1e-5)
    assert np.isfinite(grad).all()


def test_bfloat16_keeps_a_float32_softmax(inputs):
    hidden, kernel, targets, weights = inputs
    hidden, kernel = jnp.bfloat16(hidden), jnp.bfloat16(kernel)
    value, grads = jax.value_and_grad(lambda h, k: cross_entropy(h, k, targets, weights, 4), (0, 1))(hidden, kernel)
    expected, d_hidden, d_kernel = reference(np.float32(hidden), np.float32(kernel), targets, weights)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # products of bf16 are exact, sums in float32
    np.testing.assert_allclose(np.float32(grads[0]), d_hidden, atol=0.03)
    np.testing.assert_allclose(np.float32(grads[1]), d_kernel, atol=0.03)


def test_positions_without_weight_do_not_matter(inputs):
    hidden, kernel, targets, weights = inputs
    wild = np.where(weights[..., None] == 0, 50.0, hidden).astype(np.float32)
    one = cross_entropy(hidden, kernel, targets, weights, 4)
    np.testing.assert_allclose(one, cross_entropy(wild, kernel, targets, weights, 4), rtol=1e-6)


def test_logits_of_all_tokens_never_exist():
    """The largest array of the compiled gradient is a chunk's logits or a matrix, not [B * T, V]."""
    rows, length, width, vocab, chunk = 2, 256, 8, 512, 16
    shapes = [(rows, length, width), (width, vocab), (rows, length), (rows, length)]
    types = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    args = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(shapes, types, strict=True)]
    grad = jax.jit(jax.grad(lambda h, k, t, w: cross_entropy(h, k, t, w, chunk), (0, 1)))
    used = grad.lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert used < rows * length * vocab * 4 / 2
