"""Logits of our decoder against transformers' Qwen2, Qwen3 and Llama, through the conversion table; float32, CPU."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint import huggingface_config, names
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.errors import UserError
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts
from s1jax.model.attention import cached
from tests.model import make_golden, parity_cases

CASES = parity_cases.CASES
TOLERANCE = 1e-4  # absolute, on logits of standard deviation about 2


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens, positions, segment_ids):
    with jax.default_matmul_precision("highest"):
        return decoder.logits(params, config, decoder.forward(params, config, tokens, positions, segment_ids))


@functools.partial(jax.jit, static_argnums=(1, 5))
def _cached(params, config, tokens, cache, num_tokens, pages_at_once):
    attend = functools.partial(cached.attend_cached, pages_at_once=pages_at_once)
    with jax.default_matmul_precision("highest"):
        hidden, cache = decoder.forward_cached(params, config, tokens, cache, num_tokens, attend=attend)
        return decoder.logits(params, config, hidden), cache


def _ours(config, params, tokens, lengths=None):
    """Logits [B, T, V] of rows of ids [B, T], the first lengths[b] of which are not padding."""
    batch, length = tokens.shape
    place = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    lengths = np.full(batch, length) if lengths is None else np.array(lengths)
    return np.asarray(_logits(params, config, tokens, place, (place < lengths[:, None]).astype(np.int32)))


@pytest.fixture(scope="module", params=CASES)
def both(request):
    """Config, our weights and transformers' model with the same weights."""
    pytest.importorskip("torch", reason="live parity needs torch; the golden logits are compared regardless")
    pytest.importorskip(
        "transformers", reason="live parity needs transformers; the golden logits are compared regardless"
    )
    config = CASES[request.param]
    params = parity_cases.weights(config)
    return config, params, parity_cases.transformers_model(config, params)


@pytest.mark.parametrize("length", [1, 300])
def test_logits_equal_transformers(both, length):
    config, params, model = both
    ids = parity_cases.tokens(config, (2, length), seed=length)
    expected = parity_cases.transformers_logits(model, ids)
    np.testing.assert_allclose(_ours(config, params, ids), expected, rtol=0, atol=TOLERANCE)
    assert expected.std() > 0.5  # the weights are not so small that everything is equal


def test_padded_rows_equal_transformers(both):
    config, params, model = both
    lengths = np.array([300, 173, 1])
    ids = parity_cases.tokens(config, (3, 300), seed=7)
    real = np.arange(300) < lengths[:, None]
    expected = parity_cases.transformers_logits(model, ids, real)
    np.testing.assert_allclose(_ours(config, params, ids, lengths)[real], expected[real], rtol=0, atol=TOLERANCE)


SEGMENTS = [120, 37, 1, 130]  # of a row of 300, and 12 of padding


def _packed_logits(config, params, parts):
    """Our logits of each of `parts`, computed in one packed row of 300."""
    ids, positions, segment_ids = parity_cases.packed(parts, 300)
    logits = np.asarray(_logits(params, config, ids, positions, segment_ids))[0]
    return np.split(logits, np.cumsum([len(part) for part in parts]))[:-1]


def test_packed_rows_equal_transformers_one_by_one(both):
    config, params, model = both
    parts = np.split(parity_cases.tokens(config, (sum(SEGMENTS),), seed=8), np.cumsum(SEGMENTS)[:-1])
    for ours, part in zip(_packed_logits(config, params, parts), parts, strict=True):
        expected = parity_cases.transformers_logits(model, part[None])[0]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_recorded_ones(name):
    """Whole, padded and packed: what is recorded of a row holds for every row that begins like it."""
    config, stride = CASES[name], make_golden.STRIDE
    params = parity_cases.weights(config)
    row = parity_cases.tokens(config, (1, make_golden.LENGTH))
    with np.load(make_golden.PATH) as golden:
        expected = golden[name]
    assert expected.shape[0] * stride == make_golden.LENGTH and expected.std() > 0.5
    lengths = [300, 173, 1]
    whole = _ours(config, params, np.repeat(row, 3, axis=0), lengths)
    beginnings = _packed_logits(config, params, [row[0, :length] for length in SEGMENTS])
    for ours, length in zip([*whole, *beginnings], [*lengths, *SEGMENTS], strict=True):
        np.testing.assert_allclose(
            ours[:length:stride], expected[: -(-length // stride)], rtol=0, atol=TOLERANCE, err_msg=f"{length} ids"
        )


@pytest.mark.parametrize(
    ("name", "unstacked"), [*itertools.product(CASES, ["", "weight first"]), ("qwen2", "as they are")]
)
def test_cached_steps_give_the_logits_of_whole_rows(name, unstacked):
    """Rows of unlike lengths: a prefill, then id by id, as the engine runs them on TPUs, CPUs and GPUs.

    Their three pages are looked at one by one, or by twos.
    """
    at_once = 1 if unstacked == "weight first" else 2
    config = CASES[name]
    params = parity_cases.weights(config)
    ids, prompt = parity_cases.tokens(config, (3, 20), seed=9), np.array([1, 7, 12], np.int32)
    expected = _ours(config, params, ids)
    empty = cache_lib.init_cache(config, 3, 24, page=8)  # the prefill and the steps end within pages and at borders
    shuffled = np.random.default_rng(0).permutation(9).reshape(3, 3).astype(np.int32)
    empty = dataclasses.replace(empty, table=shuffled)
    prefill = np.where(np.arange(12) < prompt[:, None], ids[:, :12], 0)
    _, cache = _cached(params, config, prefill, empty, prompt, at_once)
    if unstacked:
        params = jax.jit(layouts.unstack, static_argnums=(1, 2))(params, config, unstacked == "weight first")
    if unstacked == "weight first":
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
    for step in range(8):
        place = prompt + step
        token = np.take_along_axis(ids, place[:, None], axis=1)
        logits, cache = _cached(params, config, token, cache, np.ones(3, np.int32), at_once)
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), place], rtol=0, atol=TOLERANCE)


BASE = CASES["llama"]
CHANGED = {
    "family": "qwen3",
    "vocab_size": 60,
    "d_model": 40,
    "mlp_dim": 64,
    "num_layers": 1,
    "num_heads": 6,
    "num_kv_heads": 4,
    "head_dim": 8,
    "rope_theta": 1e3,
    "rope_scaling": RopeScaling("linear", 2.0),
    "norm_eps": 1e-2,
    "qkv_bias": True,
    "qk_norm": True,
    "tied_embeddings": True,
    "context_length": 4,
}


@pytest.mark.parametrize("field", BASE.flat())
def test_every_config_field_is_live(field):
    """Changing a field changes a shape, the set of tensors or the logits, or has the input or the export rejected."""
    changed = ModelConfig.dense(**{**BASE.flat(), field: CHANGED[field]})
    params = parity_cases.weights(BASE)
    ids = parity_cases.tokens(BASE, (1, 9))

    def shapes(config):
        return jax.tree.map(lambda leaf: leaf.shape, decoder.abstract_params(config, jnp.float32))

    if shapes(changed) != shapes(BASE):
        assert names.allocate(changed, np.float32).keys() == decoder.abstract_params(changed, jnp.float32).keys()
        return
    if field == "family":
        with pytest.raises(UserError, match=r"model.family is 'qwen3', which has qk_norm True"):
            huggingface_config.config_to_json(changed)
        return
    if field == "context_length":
        with pytest.raises(UserError, match="context_length"):
            _ours(changed, params, ids)
        return
    assert np.abs(_ours(changed, params, ids) - _ours(BASE, params, ids)).max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_the_table_has_exactly_the_decoders_tensors(name):
    config = CASES[name]
    table = jax.tree.map(lambda leaf: leaf.shape, names.allocate(config, np.float32))
    assert table == jax.tree.map(lambda leaf: leaf.shape, dict(decoder.abstract_params(config, jnp.float32)))
