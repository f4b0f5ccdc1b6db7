"""Attention kernels against a plain numpy float64 softmax, and their gradients against the reference's."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.model import ModelConfig
from s1jax.model import blocks, decoder
from s1jax.model import remat as remat_lib
from s1jax.model.attention import dispatch, fused
from s1jax.parallel import sharding

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
    monkeypatch.setattr(dispatch, "_BLOCK", 8)  # several blocks, the last one not full
    inputs = _inputs(length)
    np.testing.assert_allclose(dispatch.attend(*inputs, kernel), _expected(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [8, 37])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_chunked_gradients_are_those_of_the_reference(length, kv_heads, monkeypatch):
    monkeypatch.setattr(dispatch, "_BLOCK", 8)
    q, k, v, segments = _inputs(length, kv_heads=kv_heads)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def gradients(kernel):
        loss = lambda *qkv: jnp.sum(weights * dispatch.attend(*qkv, segments, kernel))  # noqa: E731
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
    monkeypatch.setattr(dispatch, "_BLOCK", 16)
    length = 256
    q, k, v, segments = _inputs(length)

    def gradients(kernel, segments=segments, part=None):
        loss = lambda *qkv: jnp.sum(dispatch.attend(*qkv, segments, kernel, part=part) ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))

    half = length // 2  # of the queries, on one of two devices
    of_part = gradients("chunked", segments[:, :half], blocks.Part(sharding.places(length, 2), 1, segments))
    assert _largest_array(of_part, q[:, :half], k, v) <= 2 * 4 * half * 32
    assert _largest_array(gradients("xla"), q, k, v) >= 2 * 4 * length**2 / 2  # two runs of queries
    assert _largest_array(gradients("chunked"), q, k, v) <= 2 * 4 * length * 16


CONFIG = ModelConfig.dense(
    vocab_size=32, d_model=16, mlp_dim=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True
)


@functools.cache
def _gradients(remat, kernel):
    """Of a weighted sum of the decoder's output with respect to its weights."""
    rng = np.random.default_rng(2)
    params = decoder.init_params(CONFIG, jax.random.key(0))
    tokens = rng.integers(0, 32, (2, 24))
    segments = np.sort(rng.integers(1, 3, (2, 24)))
    weights = rng.normal(size=(2, 24, 16))
    attend = functools.partial(dispatch.attend, implementation=kernel)

    def loss(params):
        run = decoder.forward(params, CONFIG, tokens, np.arange(24)[None], segments, remat=remat, attend=attend)
        return jnp.sum(weights * run)

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("remat", [*sorted(remat_lib.POLICIES), "full,save_dots:1", "save_projections:1,full"])
def test_remat_changes_no_gradient(remat, kernel):
    ours, reference = map(jax.tree.leaves, (_gradients(remat, kernel), _gradients("none", "xla")))
    for one, other in zip(ours, reference, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(1, np.abs(other).max()))


def test_save_attention_does_not_run_the_kernel_again(monkeypatch):
    """Counted in the compiled gradient: the loops over blocks inside of those over layers."""
    monkeypatch.setattr(dispatch, "_BLOCK", 8)
    params = decoder.init_params(CONFIG, jax.random.key(0))
    tokens, ones = np.zeros((1, 24), int), np.ones((1, 24), int)
    attend = functools.partial(dispatch.attend, implementation="chunked")

    def count(remat):
        def loss(params):
            run = decoder.forward(params, CONFIG, tokens, ones, ones, remat=remat, attend=attend)
            return jnp.sum(run**2)

        text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
        # Not those that a compiler makes of other operations, as of a scatter.
        return len(re.findall(r' while\(.*op_name="[^"]*while/body/[^"]*while"', text))

    assert (count("save_attention"), count("full")) == (2, 3)


def test_splash_is_the_reference_with_its_gradients(monkeypatch):
    """In the interpreter: rows of 3 blocks and a bit, backward two blocks of keys at a time."""
    monkeypatch.setattr(fused, "_BLOCK", 128)
    monkeypatch.setattr(fused, "_PARTS", 2)
    q, k, v, segments = _inputs(450)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def run(kernel):
        loss = lambda *qkv: jnp.sum(weights * kernel(*qkv, segments))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    (value, ours), (expected, reference) = run(functools.partial(fused.splash, interpret=True)), run(dispatch.attend)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-4)  # a sum of 28,800 terms that cancel
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
        assert np.abs(b).max() > 0.5


def test_splash_on_parts_of_rows(monkeypatch):
    """Each device's share of rows that `mesh.sequence` splits, against whole rows; gradients of keys add up."""
    monkeypatch.setattr(fused, "_BLOCK", 128)
    monkeypatch.setattr(fused, "_PARTS", 2)
    q, k, v, segments = _inputs(600)
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    loss = lambda *qkv: jnp.sum(weights * dispatch.attend(*qkv, segments))  # noqa: E731
    reference = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    places = sharding.places(600, 2)

    @jax.jit
    def run(q, k, v, segment_ids, weights, index):
        kernel = functools.partial(fused.splash, part=blocks.Part(places, index, segments), interpret=True)
        return jax.grad(lambda *qkv: jnp.sum(weights * kernel(*qkv, segment_ids)), argnums=(0, 1, 2))(q, k, v)

    shares = [run(q[:, own], k, v, segments[:, own], weights[:, own], i) for i, own in enumerate(places)]
    for (d_q, *_), own in zip(shares, places, strict=True):
        np.testing.assert_allclose(d_q, reference[0][:, own], rtol=0, atol=2e-5)
    for which in (1, 2):
        np.testing.assert_allclose(shares[0][which] + shares[1][which], reference[which], rtol=0, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_cudnn_is_the_reference_with_its_gradients():
    """Rows of one segment, one of them padded; what it gives for padding is not looked at."""
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.normal(size=(2, 256, n, 64)), jnp.bfloat16)  # noqa: E731
    q, k, v = draw(8), draw(2), draw(2)
    segments = np.stack([np.arange(256) < 100, np.ones(256)]).astype(np.int32)
    weights = rng.normal(size=q.shape) * (segments > 0)[..., None, None]

    def run(kernel):
        loss = lambda *qkv: jnp.sum(weights * kernel(*qkv, segments).astype(jnp.float32))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for a, b in zip(run(fused.cudnn), run(dispatch.attend), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=0.03 * np.abs(b).max())


@pytest.mark.parametrize(
    ("asked", "platform", "packed", "sequence", "chosen", "why"),
    [
        ("auto", "tpu", True, 1, "splash", None),
        ("auto", "tpu", False, 2, "splash", None),
        ("auto", "cuda", False, 1, "cudnn", None),
        ("auto", "gpu", True, 1, "flash", None),
        ("auto", "cuda", False, 2, "flash", None),
        ("auto", "cpu", False, 1, "chunked", None),
        ("xla", "gpu", True, 4, "xla", None),
        ("splash", "gpu", False, 1, "chunked", "train.attention=splash runs on TPU only"),
        ("splash", "tpu", True, 4, "splash", None),
        ("cudnn", "gpu", False, 4, "chunked", "no part of a row"),
        ("cudnn", "gpu", True, 1, "chunked", "data.batching=packed"),
        ("cudnn", "cpu", False, 1, "chunked", "NVIDIA"),
        ("flash", "tpu", True, 1, "chunked", "NVIDIA"),
    ],
)
def test_what_a_kernel_cannot_do_falls_back_with_a_sentence(asked, platform, packed, sequence, chosen, why):
    name, note = dispatch.choose(asked, platform, "bfloat16", packed, sequence, 64)
    assert name == chosen
    assert (note is None) if why is None else (why in note and "chunked is used instead" in note)
    for fused_name in ("cudnn", "flash"):
        assert dispatch.choose(fused_name, "gpu", "float32", False, 1, 64)[0] == "chunked"
    for head_dim in (20, 264):
        assert dispatch.choose("auto", "gpu", "bfloat16", False, 1, head_dim) == ("flash", None)
        assert f"not {head_dim}" in dispatch.choose("cudnn", "gpu", "bfloat16", False, 1, head_dim)[1]


def test_queries_that_are_part_of_a_row(monkeypatch):
    """Two runs of neighbours against all keys, as on a mesh that splits rows."""
    monkeypatch.setattr(dispatch, "_BLOCK", 4)
    q, k, v, segments = _inputs(32)
    own = np.r_[8:24]
    for kernel in KERNELS:
        part = blocks.Part(sharding.places(32, 2), 1, segments)
        attend = functools.partial(dispatch.attend, implementation=kernel, part=part)
        out = jax.jit(attend)(q[:, own], k, v, segments[:, own])
        np.testing.assert_allclose(out, _expected(q, k, v, segments)[:, own], rtol=0, atol=1e-5)
