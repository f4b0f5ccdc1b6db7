"""Windows, sinks, softcaps and values narrower than keys: every kernel against a softmax written out in numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.layers import GQA, MLA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.model import blocks
from s1jax.model import cache as cache_lib
from s1jax.model.attention import cached, dispatch, flash, fused
from s1jax.model.attention.rule import AttentionRule
from s1jax.parallel import sharding
from s1jax.plan import flops

HEADS, KV_HEADS, SIZE, LENGTH = 4, 2, 8, 300
RULES = {
    "window of one": (AttentionRule(0.3, window=1), True),
    "softcap": (AttentionRule(1.5, softcap=2.0), False),
    "all": (AttentionRule(0.9, window=11, softcap=3.0), True),
}


def inputs(length, value_dim=SIZE):
    """Two rows: a packed one with padding at its end, and one of a single segment; and sinks."""
    rng = np.random.default_rng(length)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    packed = np.sort(rng.integers(1, 4, length))
    packed[length - length // 8 :] = 0
    segments = np.stack([packed, np.ones(length, int)]).astype(np.int32)
    kernels = draw(2, length, HEADS, SIZE), draw(2, length, KV_HEADS, SIZE), draw(2, length, KV_HEADS, value_dim)
    return *kernels, segments, draw(HEADS)


def expected(q, k, v, segments, rule, sinks):
    """All scores at once, and no maximum taken off."""
    length = q.shape[1]
    age = np.arange(length)[:, None] - np.arange(length)
    seen = (age >= 0) & (age < (rule.window or length)) & (segments[:, :, None] == segments[:, None])
    heads = np.arange(HEADS) * k.shape[2] // HEADS
    scores = rule.scale * jnp.einsum("btnh,bsnh->bnts", q, k[:, :, heads])
    if rule.softcap:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    weights = jnp.where(seen[:, None], jnp.exp(scores), 0)
    total = weights.sum(-1) + (0 if sinks is None else jnp.exp(sinks)[None, :, None])
    return jnp.einsum("bnts,bsnh->btnh", weights / total[..., None], v[:, :, heads])


@functools.cache
def reference(name, length):
    """Weights of a sum over the outcome, 0 for padding, the outcome, and gradients of q, k, v and sinks."""
    rule, has_sinks = RULES[name]
    q, k, v, segments, sinks = inputs(length, 6)
    weights = np.random.default_rng(1).normal(size=(2, length, HEADS, 6)).astype(np.float32)
    weights *= (segments > 0)[..., None, None]

    def loss(q, k, v, sinks):
        out = expected(q, k, v, segments, rule, sinks if has_sinks else None)
        return jnp.sum(weights * out), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, sinks)
    return weights, out, gradients


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(dispatch, "_BLOCK", 16)
    monkeypatch.setattr(dispatch, "_SMALLEST_BLOCK", 4)
    monkeypatch.setattr(fused, "_BLOCK", 128)
    monkeypatch.setattr(fused, "_PARTS", 2)


KERNELS = {
    "xla": functools.partial(dispatch.attend, implementation="xla"),
    "chunked": functools.partial(dispatch.attend, implementation="chunked"),
    "flash": functools.partial(flash.attend, blocks=flash.Blocks(held=64, met=32), interpret=True),
    "splash": functools.partial(fused.splash, interpret=True),
}


@pytest.mark.parametrize(
    ("name", "kernel"), [*itertools.product(RULES, ("xla", "chunked")), ("all", "flash"), ("all", "splash")]
)
def test_whole_rows_and_their_gradients(name, kernel):
    rule, has_sinks = RULES[name]
    q, k, v, segments, sinks = inputs(LENGTH, 6)
    weights, out, gradients = reference(name, LENGTH)

    def loss(q, k, v, sinks):
        ours = KERNELS[kernel](q, k, v, segments, rule=rule, sinks=sinks if has_sinks else None)
        return jnp.sum(weights * ours), ours

    (_, ours), found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, sinks)
    np.testing.assert_allclose(ours[segments > 0], out[segments > 0], rtol=0, atol=2e-6)
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
    assert not has_sinks or np.abs(gradients[3]).max() > 0.5


@pytest.mark.parametrize("kernel", ["chunked", "flash", "splash"])
def test_queries_that_are_part_of_a_row(kernel):
    """Each of two devices' shares: two runs of neighbours; one has fewer keys in its window."""
    rule, _ = RULES["all"]
    q, k, v, segments, sinks = inputs(LENGTH, 6)
    weights, out, gradients = reference("all", LENGTH)
    places = sharding.places(LENGTH, 2)

    @jax.jit
    def run(q, k, v, sinks, own_ids, weights, index):
        part = blocks.Part(places, index, segments)

        def loss(q, k, v, sinks):
            ours = KERNELS[kernel](q, k, v, own_ids, part=part, rule=rule, sinks=sinks)
            return jnp.sum(weights * ours), ours

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, sinks)

    shares = [run(q[:, own], k, v, sinks, segments[:, own], weights[:, own], i) for i, own in enumerate(places)]
    for ((_, ours), found), own in zip(shares, places, strict=True):
        real = segments[:, own] > 0
        np.testing.assert_allclose(ours[real], out[:, own][real], rtol=0, atol=2e-6)
        np.testing.assert_allclose(found[0], gradients[0][:, own], rtol=0, atol=2e-5)
    for which in (1, 2, 3):
        np.testing.assert_allclose(shares[0][1][which] + shares[1][1][which], gradients[which], rtol=0, atol=2e-5)


def config(latent):
    attention = MLA(HEADS, 0, 6, 2, 2, 4) if latent else GQA(HEADS, KV_HEADS, SIZE)
    return ModelConfig(8, 8, (Group(1, (Layer(attention, Dense(8)),)),))


def _piece(starts, length, x):
    """Of every row, `length` tokens from its own start on; past the end zeros."""
    padded = np.pad(x, ((0, 0), (0, length), (0, 0), (0, 0)))
    return np.stack([row[start : start + length] for row, start in zip(padded, starts, strict=True)])


@pytest.mark.parametrize(
    ("name", "stacked"), [("window of one", False), ("softcap", True), ("all", True), ("latent", False)]
)
def test_pieces_of_a_row_over_the_cache(name, stacked):
    """Several new tokens a piece, and rows of several lengths; one row gets nothing. Then whole rows' outcome."""
    length, page, latent = 40, 4, name == "latent"
    rule, has_sinks = (AttentionRule(0.3, window=9, value_dim=6), True) if latent else RULES[name]
    q, k, v, _, sinks = inputs(length)
    if latent:
        k, v = k[:, :, :1], k[:, :, :1, :6]
    sinks = sinks if has_sinks else None
    whole = expected(q, k, v, np.ones((2, length), int), rule, sinks)
    cache = cache_lib.init_cache(config(latent), 2, length, page=page)
    pages, table = (cache.pages if stacked else cache_lib.unstack(cache.pages).layers[0]), cache.table[::-1]
    assert (pages.values is None) == latent
    attend = jax.jit(functools.partial(cached.attend_cached, rule=rule, pages_at_once=3))
    lengths = np.array([0, 0])
    for counts in [(13, 7), (0, 13), (13, 1), *[(1, 1)] * 12]:
        most = 13 if max(counts) > 1 else 1
        take = functools.partial(_piece, lengths, most)
        new = cache_lib.NewTokens(table, jnp.asarray(lengths), jnp.array(counts))
        values = None if latent else take(v)
        out, pages = attend(take(q), take(k), values, pages, jnp.int32(0) if stacked else None, new, sinks=sinks)
        for row, count in enumerate(counts):
            here = slice(lengths[row], lengths[row] + count)
            np.testing.assert_allclose(out[row, :count], whole[row, here], rtol=0, atol=2e-6)
        lengths = lengths + counts
    assert list(lengths) == [38, 33]


def test_latent_pages_in_int8():
    """Values are read by the scales of the keys that they are a part of."""
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, 8, heads, SIZE)).astype(np.float32) for heads in (HEADS, 1))
    cache = cache_lib.init_cache(config(True), 2, 8, jnp.int8, page=4)
    new = cache_lib.NewTokens(cache.table, cache.lengths, jnp.array([8, 8]))
    rule = AttentionRule(0.3, value_dim=6)
    out, _ = jax.jit(functools.partial(cached.attend_cached, rule=rule))(q, k, None, cache.pages, 0, new)
    whole = expected(q, k, k[..., :6], np.ones((2, 8), int), rule, None)
    np.testing.assert_allclose(out, whole, rtol=0, atol=0.03)
    assert cache_lib.bytes_per_token(config(True), jnp.int8) == 8 + 2 * 4


def test_windows_save_products(monkeypatch):
    """Operations of `chunked` grow with the window, not with the row."""
    monkeypatch.undo()

    def operations(length, window):
        shapes = [jax.ShapeDtypeStruct((1, length, n, 64), jnp.float32) for n in (2, 1, 1)]
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        rule = AttentionRule(1.0, window=window)
        loss = lambda q, k, v, s: dispatch.attend(q, k, v, s, "chunked", rule=rule).sum()  # noqa: E731
        return flops.count(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*shapes, ids).jaxpr)

    assert operations(8192, 256) / operations(4096, 256) == pytest.approx(2, rel=0.03)
    needed = 7 * 2 * 64 * 2 * 8192 * 256  # two products forward and five backward, over the keys of the window
    assert needed < operations(8192, 256) < 1.6 * needed
    assert operations(8192, 0) > 10 * operations(8192, 256)
