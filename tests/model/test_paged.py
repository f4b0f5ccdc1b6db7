"""The kernel that reads pages where they lie, in Pallas' interpreter, against the attention that gathers them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config import presets
from s1jax.config.model import ModelConfig
from s1jax.model import cache as cache_lib
from s1jax.model.attention import cached, fused, paged
from s1jax.model.attention.rule import AttentionRule
from tests import compilers

PAGE, WIDTH, LAYERS = 16, 7, 2


def _filled(kv_heads, head_dim, dtype, lengths):
    """Pages in random order with `lengths` tokens of every row, and tables whose other entries point elsewhere."""
    rng = np.random.default_rng(kv_heads)
    config = ModelConfig.dense(
        vocab_size=8, d_model=8, mlp_dim=8, num_layers=LAYERS, num_heads=kv_heads, num_kv_heads=kv_heads,
        head_dim=head_dim,
    )  # fmt: skip
    rows = len(lengths)
    table = jnp.asarray(rng.permutation(rows * WIDTH).reshape(rows, WIDTH), jnp.int32)
    pages = cache_lib.init_pages(config, rows * WIDTH, PAGE, dtype)
    slots = cache_lib.NewTokens(table, jnp.zeros(rows, jnp.int32), jnp.asarray(lengths, jnp.int32))
    tokens = lambda: jnp.asarray(rng.normal(size=(rows, PAGE * WIDTH, kv_heads, head_dim)), jnp.float32)  # noqa: E731
    for layer in range(LAYERS):
        pages = _append(pages, jnp.int32(layer), tokens(), tokens(), slots)
    return pages, table


_append = jax.jit(cache_lib.append)


def _attend(*args, **options):
    return jax.jit(functools.partial(cached.attend_cached, **options))(*args)


@pytest.mark.parametrize(
    ("kv_heads", "group", "programs", "stacked", "dtype", "rule"),
    [
        (2, 3, 512, True, "float32", None),
        (2, 3, 512, False, "int8", None),
        (1, 7, 8, True, "int8", AttentionRule(0.4, window=21, softcap=2.0)),
        (3, 1, 1, False, "float32", AttentionRule(0.4, window=5)),
    ],
)
def test_it_is_the_attention_that_gathers(kv_heads, group, programs, stacked, dtype, rule, monkeypatch):
    """Rows of every kind: a fresh one, page borders, a full one, and one without a new token, which gets 0."""
    monkeypatch.setattr(paged, "_PROGRAMS", programs)
    lengths, count = [0, 1, 15, 16, 17, 70, 111, 40], [1, 1, 1, 1, 1, 1, 1, 0]
    pages, table = _filled(kv_heads, 16, dtype, lengths)
    rng = np.random.default_rng(9)
    draw = lambda heads: jnp.asarray(rng.normal(size=(8, 1, heads, 16)), jnp.float32)  # noqa: E731
    new = cache_lib.NewTokens(table, jnp.asarray(lengths, jnp.int32), jnp.asarray(count, jnp.int32))
    layer = jnp.int32(1) if stacked else None
    pages = pages if stacked else cache_lib.unstack(pages).layers[1]
    args = (draw(kv_heads * group), draw(kv_heads), draw(kv_heads), pages, layer, new)
    ruled = {"rule": rule, "sinks": None if rule is None else rng.normal(size=kv_heads * group)}
    monkeypatch.setattr(paged, "attend", functools.partial(paged.attend, interpret=True))
    out, after = _attend(*args, pages_in_place=True, **ruled)
    expected, expected_after = _attend(*args, **ruled)
    np.testing.assert_allclose(out[:7], expected[:7], rtol=0, atol=2e-6)
    assert not np.asarray(out[7]).any() and (np.abs(expected[:7]).max(axis=(1, 2, 3)) > 0.1).all()
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(expected_after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_prompts_and_sizes_it_cannot_read_are_gathered(monkeypatch):
    """Several new tokens a row, and heads of 24: the same outcome, without the kernel."""
    monkeypatch.setattr(paged, "attend", None)
    for head_dim, length in ((16, 5), (24, 1)):
        pages, table = _filled(2, head_dim, "float32", [20, 3])
        new = cache_lib.NewTokens(table, jnp.array([20, 3]), jnp.array([length, 1]))
        rng = np.random.default_rng(0)
        q, k, v = (jnp.asarray(rng.normal(size=(2, length, heads, head_dim)), jnp.float32) for heads in (4, 2, 2))
        args = (q, k, v, pages, jnp.int32(0), new)
        out, expected = (_attend(*args, pages_in_place=place)[0] for place in (True, False))
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_values_that_a_tpu_keeps_with_their_slots_last(dtype, monkeypatch):
    pages, table = _filled(2, 8, dtype, [20, 3, 111])
    new = cache_lib.NewTokens(table, jnp.array([20, 3, 111]), jnp.array([1, 1, 1]))
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, 1, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    expected = _attend(q, k, v, pages, jnp.int32(1), new, pages_at_once=3)
    monkeypatch.setattr(fused, "LANES", PAGE)
    turned = _attend(q, k, v, pages, jnp.int32(1), new, pages_at_once=3)
    for one, other in zip(jax.tree.leaves(turned), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cache", ["bfloat16", "int8"])
def test_it_compiles_for_an_h100_and_copies_no_pages(cache):
    """One layer of 7B: what is needed beside its pages is less than a copy of keys or values."""
    config, rows, width = presets.PRESETS["qwen2p5_7b"], 64, 8
    pages = jax.eval_shape(lambda: cache_lib.unstack(cache_lib.init_pages(config, rows * width, 64, cache)).layers[0])
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    q, k = (jax.ShapeDtypeStruct((rows, 1, heads, 128), jnp.bfloat16) for heads in (28, 4))
    new = cache_lib.NewTokens(ints(rows, width), ints(rows), ints(rows))
    attend = jax.jit(functools.partial(cached.attend_cached, pages_in_place=True), donate_argnums=3)
    compiled = compilers.compile_for("h100:1", attend, q, k, k, pages, None, new)
    assert "paged_attention" in compiled.as_text()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pages))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * held
