"""Layers of every rule against a decoder written out in numpy, a token and a head at a time."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.errors import UserError
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, embedding, layouts, norms, rope
from s1jax.model.attention import dispatch
from s1jax.model.mlp import dense

V, D, F, N, K, H = 40, 24, 32, 4, 2, 8
LENGTH = 26


def _layer(norms="pre", activation="silu", **attention):
    return Layer(GQA(N, K, H, **attention), Dense(F, activation), norms)


YARN = RopeScaling("yarn", 4.0, 8, mscale=1.0, mscale_all_dim=0.5)
LONG = RopeScaling("longrope", 4.0, 12, short_factor=(1.0, 1.5, 2.0), long_factor=(2.0, 4.0, 8.0))
CONFIGS = {
    "both norms, caps, local rope": ModelConfig(
        V, D, (Group(1, (_layer("both", "gelu_tanh", window=4, rope="local", qk_norm=True, query_scale=0.3),
                         _layer("both", "gelu_tanh", softcap=2.0, qk_norm=True))),
               Group(1, (_layer("both", "gelu_tanh", window=4, rope="local", qk_norm=True),))),
        rope_theta=1e4, local_rope_theta=100.0, norm_offset=True, scale_embeddings=True, final_softcap=3.0,
        tied_embeddings=True, rope_scaling=RopeScaling("linear", 8.0),
    ),
    "post norms, whole norms, no rope": ModelConfig(
        V, D, (Group(2, (_layer("post", qk_norm_whole=True, window=7),
                         _layer("post", qk_norm_whole=True, rope="none"))),),
        rope_theta=1e3,
    ),
    "sinks, biases, growing queries": ModelConfig(
        V, D, (Group(2, (_layer(window=5, sinks=True, qkv_bias=True, out_bias=True, position_scaling=0.4),)),
               Group(1, (_layer(sinks=True, qkv_bias=True, out_bias=True, position_scaling=0.4),))),
        rope_theta=1e4, rope_scaling=YARN,
    ),
    "longrope over a part of the head": ModelConfig(
        V, D, (Group(2, (_layer(rotary_dim=6),)),), rope_theta=1e4, rope_scaling=LONG, context_length=48
    ),
}  # fmt: skip


def weights(config):
    """Of deviation 0.25, norms and biases as well."""
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_params(config)
    return jax.tree.map(
        lambda x, base: base + 0.25 * rng.normal(size=x.shape).astype(np.float32),
        shapes,
        jax.tree_util.tree_map_with_path(
            lambda path, _: float(path[-1].key == "scale" and not config.norm_offset), shapes
        ),
    )


def _unit(x, scale, config):
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps)
    return x * (scale + config.norm_offset)


def _frequencies(config, attention, length):
    """Frequencies of the rotated pairs, and what cosines and sines are multiplied by."""
    r, scaling = attention.rotary_dim or H, config.rope_scaling
    i = np.arange(r // 2)
    if attention.rope == "local":
        return config.local_rope_theta ** (-2 * i / r), 1.0
    plain = config.rope_theta ** (-2 * i / r)
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    original = scaling.original_context_length
    if scaling.kind == "longrope":
        factors = scaling.long_factor if length > original else scaling.short_factor
        return plain / np.array(factors), math.sqrt(1 + math.log(scaling.factor) / math.log(original))
    dimension = lambda turns: r * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))  # noqa: E731
    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), r - 1)
    ramp = np.clip((i - low) / (high - low), 0, 1)
    scale = lambda m: 0.1 * m * math.log(scaling.factor) + 1  # noqa: E731
    return plain * (1 - ramp) + plain / scaling.factor * ramp, scale(1.0) / scale(0.5)


def _turn(x, position, frequencies, factor):
    r = 2 * len(frequencies)
    cos, sin = factor * np.cos(position * frequencies), factor * np.sin(position * frequencies)
    first, second = x[: r // 2], x[r // 2 : r]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[r:]])


def _attention(x, w, config, spec, length):
    """[T, D] of one segment."""
    q, k, v = (np.einsum("td,dnh->tnh", x, w[name]["kernel"]) for name in ("query", "key", "value"))
    if spec.qkv_bias:
        q, k, v = (a + w[name]["bias"] for a, name in ((q, "query"), (k, "key"), (v, "value")))
    if spec.qk_norm:
        q, k = (_unit(a, w[name]["scale"], config) for a, name in ((q, "query_norm"), (k, "key_norm")))
    if spec.qk_norm_whole:
        q, k = (
            _unit(a.reshape(len(x), -1), w[name]["scale"], config).reshape(a.shape)
            for a, name in ((q, "query_norm"), (k, "key_norm"))
        )
    if spec.rope != "none":
        frequencies, factor = _frequencies(config, spec, length)
        q, k = (np.stack([[_turn(h, t, frequencies, factor) for h in a[t]] for t in range(len(x))]) for a in (q, k))
    out = np.zeros((len(x), N, H))
    for t in range(len(x)):
        if spec.position_scaling:
            q[t] *= 1 + spec.position_scaling * math.log(1 + t // config.rope_scaling.original_context_length)
        first = max(0, t - spec.window + 1) if spec.window else 0
        for n in range(N):
            scores = k[first : t + 1, n * K // N] @ q[t, n] * (spec.query_scale or H**-0.5)
            if spec.softcap:
                scores = spec.softcap * np.tanh(scores / spec.softcap)
            shares = np.exp(scores)
            total = shares.sum() + (np.exp(w["sinks"]["logits"][n]) if spec.sinks else 0)
            out[t, n] = shares / total @ v[first : t + 1, n * K // N]
    out = np.einsum("tnh,nhd->td", out, w["out"]["kernel"])
    return out + w["out"]["bias"] if spec.out_bias else out


def _mlp(x, w, spec):
    gate, up = x @ w["gate"]["kernel"], x @ w["up"]["kernel"]
    if spec.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return gate * up @ w["down"]["kernel"]


def expected(params, config, ids, length=None):
    """Logits [T, V] of one segment; `length` is what longrope chooses by."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = params["embed"]["embedding"][ids] * (math.sqrt(D) if config.scale_embeddings else 1)
    places = {number: (stack.name, i) for stack in config.stacks() for i, number in enumerate(stack.numbers)}
    for number, layer in enumerate(config.layers()):
        name, i = places[number]
        w = jax.tree.map(lambda a, i=i: a[i], params[name])
        norm = lambda x, name, w=w: _unit(x, w[name]["scale"], config) if name in w else x  # noqa: E731
        attended = _attention(norm(x, "attention_norm"), w["attention"], config, layer.attention, length or len(ids))
        x = x + norm(attended, "attention_out_norm")
        x = x + norm(_mlp(norm(x, "mlp_norm"), w["mlp"], layer.mlp), "mlp_out_norm")
    x = _unit(x, params["final_norm"]["scale"], config)
    logits = x @ (params["embed"]["embedding"].T if config.tied_embeddings else params["head"]["kernel"])
    cap = config.final_softcap
    return cap * np.tanh(logits / cap) if cap else logits


IDS = np.random.default_rng(1).integers(0, V, (2, LENGTH))


@functools.cache
def _pieces(name):
    """Logits of a row of one segment [T, V], and of one of three segments and padding."""
    config = CONFIGS[name]
    params = weights(config)
    ends = [0, 5, 20, LENGTH - 2]
    whole = expected(params, config, IDS[0])
    packed = [expected(params, config, IDS[1, a:b]) for a, b in itertools.pairwise(ends)]
    return params, whole, np.concatenate(packed), ends


@pytest.mark.parametrize(("name", "kernel"), zip(CONFIGS, ["chunked", "xla"] * 2, strict=True))
def test_whole_and_packed_rows(name, kernel, monkeypatch):
    monkeypatch.setattr(dispatch, "_BLOCK", 8)
    monkeypatch.setattr(dispatch, "_SMALLEST_BLOCK", 4)
    config = CONFIGS[name]
    params, whole, packed, ends = _pieces(name)
    segments, positions = np.ones((2, LENGTH), np.int32), np.tile(np.arange(LENGTH), (2, 1))
    segments[1] = 0
    for number, (a, b) in enumerate(itertools.pairwise(ends), start=1):
        segments[1, a:b], positions[1, a:b] = number, np.arange(b - a)

    @jax.jit
    def run(params):
        hidden = decoder.forward(
            params, config, IDS, positions, segments, mlp_chunks=2,
            attend=functools.partial(dispatch.attend, implementation=kernel),
        )  # fmt: skip
        return decoder.logits(params, config, hidden)

    logits = run(params)
    np.testing.assert_allclose(logits[0], whole, rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits[1, : len(packed)], packed, rtol=0, atol=2e-5)
    assert np.abs(whole).max() > 1


@pytest.mark.parametrize(("name", "unstack"), zip(CONFIGS, [True, False] * 2, strict=True))
def test_pieces_over_the_cache(name, unstack):
    """A prompt in two pieces, then token by token: stacked, or a layer at a time with transposed kernels."""
    config = CONFIGS[name]
    params, whole, *_ = _pieces(name)
    cache = cache_lib.init_cache(config, 1, LENGTH, page=4)
    if unstack:
        params = jax.jit(lambda p: layouts.unstack(p, config, transpose_kernels=True))(params)
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))

    @jax.jit
    def run(params, ids, cache):
        hidden, cache = decoder.forward_cached(params, config, ids, cache, jnp.array([ids.shape[1]]))
        return decoder.logits(params, config, hidden), cache

    found, first = [], 0
    for size in (10, 10, *[1] * 6):
        logits, cache = run(params, IDS[:1, first : first + size], cache)
        found.append(logits[0])
        first += size
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=0, atol=2e-5)


def test_gradients_of_an_mlp_in_chunks_are_those_of_the_whole():
    """With GELU: the backward pass in chunks computes its derivative by itself."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((5, D), (D, F), (D, F), (F, D))]

    def whole(x, gate, up, down):
        return (jax.nn.gelu(x @ gate, approximate=True) * (x @ up)) @ down

    def gradients(mlp):
        return jax.jit(jax.grad(lambda *arrays: jnp.sum(mlp(*arrays) ** 2), (0, 1, 2, 3)))(*arrays)

    chunked = gradients(lambda *arrays: dense._chunked(*arrays, 4, "gelu_tanh"))
    for one, other in zip(chunked, gradients(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_longrope_over_the_cache_goes_by_the_limit():
    """A row of 8 that may become 12 tokens has the short frequencies, one that may become 13 the long ones."""
    config = CONFIGS["longrope over a part of the head"]
    params, ids = weights(config), np.tile(IDS[0, :8], (2, 1))
    cache = dataclasses.replace(cache_lib.init_cache(config, 2, 16, page=4), limits=jnp.array([12, 13]))
    hidden, _ = decoder.forward_cached(params, config, ids, cache, jnp.array([8, 8]))
    short, long = (expected(params, config, ids[0], length) for length in (12, 13))
    logits = decoder.logits(params, config, hidden)
    np.testing.assert_allclose(logits, np.stack([short, long]), rtol=0, atol=2e-5)
    assert np.abs(short - long).max() > 0.1
    with pytest.raises(ValueError, match="no limits"):
        decoder.forward_cached(params, config, ids, dataclasses.replace(cache, limits=None), jnp.array([8, 8]))
    # Where no sequence can be long, nothing is chosen.
    assert not dataclasses.replace(config, context_length=12).rope_depends_on_length


def test_a_norm_with_an_offset_multiplies_in_float32():
    """As transformers' Gemma in bfloat16: 1 + 0.0039 is not a bfloat16, and the product is rounded once."""
    x, scale = jnp.asarray([[1.0, 3.0, -2.0, 0.5]], jnp.bfloat16), jnp.asarray([0.0039, 0.3, -0.2, 1.0], jnp.bfloat16)
    wide = np.asarray(x, np.float32) / np.sqrt(np.mean(np.asarray(x, np.float32) ** 2) + 1e-6)
    product = jnp.asarray(wide * (1 + np.asarray(scale, np.float32))).astype(jnp.bfloat16)
    np.testing.assert_array_equal(norms.rms_norm(x, scale, 1e-6, True), product)


def test_embeddings_are_scaled_in_their_dtype():
    """sqrt(3072) is 55.43, in bfloat16 55.5."""
    config = dataclasses.replace(CONFIGS["both norms, caps, local rope"], d_model=3072)
    params = {"embed": {"embedding": jnp.ones((V, 3072), jnp.bfloat16)}}
    scaled = decoder._embed(params, config, jnp.zeros((1, 1), jnp.int32), jnp.bfloat16, embedding.lookup)
    assert float(scaled[0, 0, 0]) == 55.5


def test_scores_of_latent_attention_are_scaled_twice():
    assert rope.score_factor(RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=1.0)) == pytest.approx(
        1.8738542
    )
    assert rope.attention_factor(RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=1.0)) == 1
    assert rope.score_factor(RopeScaling("yarn", 40.0, 4096)) == rope.score_factor(None) == 1


def test_growing_queries_need_the_original_context():
    with pytest.raises(UserError, match=r"model.position_scaling needs the original_context_length of model.rope_scal"):
        ModelConfig(V, D, (Group(1, (_layer(position_scaling=0.1),)),))
