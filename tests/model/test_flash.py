"""The FlashAttention kernels in Pallas' interpreter against the reference, and compiled for an H100 where it can be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.model import blocks
from s1jax.model.attention import dispatch, flash
from s1jax.parallel import sharding
from s1jax.plan import flops
from tests import compilers

SMALL = flash.Blocks(held=32, met=16)


def _inputs(length, heads, kv_heads, head_dim=16, dtype=np.float32):
    """A packed row with padding at its end, one of a single segment, and one of nothing but padding."""
    rng = np.random.default_rng(length + heads)
    draw = lambda n: jnp.asarray(rng.normal(size=(3, length, n, head_dim)), dtype)  # noqa: E731
    packed = np.sort(rng.integers(1, 5, length))
    packed[length - length // 8 :] = 0
    segments = np.stack([packed, np.ones(length), np.zeros(length)]).astype(np.int32)
    return draw(heads), draw(kv_heads), draw(kv_heads), segments


def _gradients(kernel, q, k, v, segments):
    """Outcome and gradients, of and from what is no padding."""
    real = (segments > 0)[..., None, None]
    weights = real * np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def loss(q, k, v):
        out = jnp.where(real, kernel(q, k, v, segments), 0)
        return jnp.sum(weights * out.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim"),
    [(1, 2, 2, 8), (37, 4, 2, 24), (130, 6, 2, 16)],
)
def test_flash_is_the_reference_with_its_gradients(length, heads, kv_heads, head_dim):
    inputs = _inputs(length, heads, kv_heads, head_dim)
    ours = _gradients(functools.partial(flash.attend, blocks=SMALL, interpret=True), *inputs)
    reference = _gradients(dispatch.attend, *inputs)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
        assert length == 1 or np.abs(b).max() > 0.5


def test_in_bfloat16_at_the_blocks_of_a_gpu():
    """Within the rounding of weights and outcome to 8 bits; the reference computes in float32."""
    inputs = _inputs(300, 2, 1, dtype=jnp.bfloat16)
    ours = _gradients(functools.partial(flash.attend, interpret=True), *inputs)
    reference = _gradients(dispatch.attend, *(x.astype(np.float32) for x in inputs[:3]), inputs[3])
    for a, b in zip(ours, reference, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(b).max())


def test_padding_gets_zero_and_gives_no_gradient():
    q, k, v, segments = _inputs(40, 2, 1)

    def loss(*qkv):
        out = flash.attend(*qkv, segments, blocks=SMALL, interpret=True)
        return out.sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    out = np.asarray(out)
    assert not out[segments == 0].any() and out[segments > 0].any()
    for gradient in gradients:
        gradient = np.asarray(gradient)
        assert np.isfinite(gradient).all() and not gradient[segments == 0].any()


def test_queries_that_are_part_of_a_row():
    """Each device's share of rows that `mesh.sequence` splits, against whole rows; gradients of keys add up."""
    q, k, v, segments = _inputs(128, 4, 2)
    reference = _gradients(dispatch.attend, q, k, v, segments)
    weights = (segments > 0)[..., None, None] * np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    d_k, d_v = np.zeros(k.shape), np.zeros(v.shape)
    places = sharding.places(128, 2)
    for i, own in enumerate(places):
        part = blocks.Part(places, i, segments)
        kernel = functools.partial(flash.attend, part=part, blocks=SMALL, interpret=True)
        loss = lambda q, k, v, own=own, kernel=kernel: jnp.sum(weights[:, own] * kernel(q, k, v, segments[:, own]))  # noqa: E731
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q[:, own], k, v)
        np.testing.assert_allclose(gradients[0], reference[1][:, own], rtol=0, atol=2e-5)
        d_k, d_v = d_k + gradients[1], d_v + gradients[2]
    np.testing.assert_allclose(d_k, reference[2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(d_v, reference[3], rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [0, 13])
def test_only_pairs_of_blocks_that_see_each_other_are_computed(window):
    """Every pair of blocks, against the visible pairs of tokens; here no superfluous one is between first and last."""
    lengths = [40, 7, 61, 20]
    ids = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [np.full(16, 2**30)])
    own, seen = ids[None], np.where(ids == 2**30, 2**30 + 1, ids)[None]
    places = np.arange(len(ids))
    visible = (own[0][:, None] == seen[0][None]) & (places[:, None] >= places[None])
    visible &= places[:, None] - places[None] < (window or len(ids))
    expected = visible.reshape(9, 16, 18, 8).any((1, 3))
    first, last = flash._bounds(flash._needed(jnp.asarray(own), jnp.asarray(seen), jnp.asarray(places), 16, 8, window))
    computed = (np.arange(18) >= first[0][:, None]) & (np.arange(18) < last[0][:, None])
    np.testing.assert_array_equal(computed, expected)
    assert computed.sum() < 0.6 * 9 * 18 / 2


def test_operations_are_counted_to_the_diagonal():
    """4 H a pair forward, 14 H backward, for pairs in the blocks on and below the diagonal."""
    q, k, v = (jnp.zeros((2, 512, n, 32), jnp.bfloat16) for n in (4, 2, 2))
    loss = lambda *qkv: flash.attend(*qkv, jnp.ones((2, 512), jnp.int32)).astype(jnp.float32).sum()  # noqa: E731
    counted = flops.count(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v).jaxpr)
    blocks = 4 * 5 // 2
    assert counted == 2 * 4 * blocks * 128**2 * 18 * 32


@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_compiles_for_an_h100(head_dim):
    shape = lambda n: jax.ShapeDtypeStruct((1, 1024, n, head_dim), jnp.bfloat16)  # noqa: E731
    ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    loss = lambda q, k, v, s: flash.attend(q, k, v, s).astype(jnp.float32).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = compilers.compile_for("h100:1", gradients, shape(6), shape(2), shape(2), ids).as_text()
    for kernel in ("flash_forward", "flash_backward_queries", "flash_backward_keys"):
        assert kernel in text


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_on_a_gpu_it_is_the_reference(head_dim):
    inputs = _inputs(700, 8, 2, head_dim, jnp.bfloat16)
    reference = _gradients(dispatch.attend, *(x.astype(np.float32) for x in inputs[:3]), inputs[3])
    for a, b in zip(_gradients(flash.attend, *inputs), reference, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=0.03 * np.abs(b).max())
