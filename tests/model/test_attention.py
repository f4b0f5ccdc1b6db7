"""Attention kernels against a plain numpy float64 softmax, and their gradients against the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config import ModelConfig
from s1jax.model import attention, decoder

KERNELS = ["xla", "chunked"]


def _inputs(length, heads=4, kv_heads=2, seed=0):
    """Two rows: a packed one with padding at its end, and one of a single segment."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.normal(size=(2, length, n, 8)).astype(np.float32)  # noqa: E731
    packed = np.sort(rng.integers(1, 4, length))
    packed[length - length // 8 :] = 0
    segments = np.stack([packed, np.ones(length, int)]).astype(np.int32)
    return draw(heads), draw(kv_heads), draw(kv_heads), segments


def _expected(q, k, v, segments):
    batch, length, heads, size = q.shape
    out = np.zeros(q.shape)
    for b in range(batch):
        for n in range(heads):
            for t in range(length):
                seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
                keys = k[b, seen, n * k.shape[2] // heads].astype(np.float64)
                scores = keys @ q[b, t, n] / size**0.5
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, n * k.shape[2] // heads]
    return out


@pytest.mark.parametrize("length", [1, 7, 16, 37])
@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_is_the_softmax_mean_of_the_own_segments_past(kernel, length, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 8)  # several blocks, the last one not full
    inputs = _inputs(length)
    np.testing.assert_allclose(attention.attend(*inputs, kernel), _expected(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [8, 37])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_chunked_gradients_are_those_of_the_reference(length, kv_heads, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 8)
    q, k, v, segments = _inputs(length, kv_heads=kv_heads)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def gradients(kernel):
        loss = lambda *qkv: jnp.sum(weights * attention.attend(*qkv, segments, kernel))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for ours, reference in zip(gradients("chunked"), gradients("xla"), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5)
        assert np.abs(reference).max() > 0.5


def _largest_array(function, *args):
    """Elements of the largest array in the optimised program."""
    text = jax.jit(function).lower(*args).compile().as_text()
    shapes = [part.split("]")[0] for kind in ("f32[", "bf16[", "pred[") for part in text.split(kind)[1:]]
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes if shape[:1].isdigit())


def test_chunked_never_holds_scores_of_a_whole_row(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 16)
    length = 256
    q, k, v, segments = _inputs(length)

    def gradients(kernel):
        loss = lambda *qkv: jnp.sum(attention.attend(*qkv, segments, kernel) ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))

    assert _largest_array(gradients("xla"), q, k, v) >= 2 * 4 * length**2
    assert _largest_array(gradients("chunked"), q, k, v) <= 2 * 4 * length * 16


CONFIG = ModelConfig(
    vocab_size=32, d_model=16, mlp_dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True
)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("remat", sorted(decoder.REMAT))
def test_remat_changes_no_gradient(remat, kernel):
    rng = np.random.default_rng(2)
    params = decoder.init_params(CONFIG, jax.random.key(0))
    tokens = rng.integers(0, 32, (2, 24))
    segments = np.sort(rng.integers(1, 3, (2, 24)))
    weights = rng.normal(size=(2, 24, 16))

    def gradients(remat, kernel):
        def loss(params):
            run = decoder.forward(params, CONFIG, tokens, np.arange(24)[None], segments, remat=remat, attention=kernel)
            return jnp.sum(weights * run)

        return jax.jit(jax.grad(loss))(params)

    for ours, reference in zip(
        *map(jax.tree.leaves, (gradients(remat, kernel), gradients("none", "xla"))), strict=True
    ):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5 * max(1, np.abs(reference).max()))


def test_save_attention_does_not_run_the_kernel_again(monkeypatch):
    """Counted in the compiled gradient: the loops over blocks, which running the kernel again adds to."""
    monkeypatch.setattr(attention, "_BLOCK", 8)
    params = decoder.init_params(CONFIG, jax.random.key(0))
    tokens, ones = np.zeros((1, 24), int), np.ones((1, 24), int)

    def count(remat):
        def loss(params):
            run = decoder.forward(params, CONFIG, tokens, ones, ones, remat=remat, attention="chunked")
            return jnp.sum(run**2)

        return jax.jit(jax.grad(loss)).lower(params).compile().as_text().count("while(")

    assert count("save_attention") < count("full")
