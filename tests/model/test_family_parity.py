"""Logits of every family against transformers' own, live or recorded; float32, CPU."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from s1jax.model import cache as cache_lib
from s1jax.model import decoder
from s1jax.model.attention import cached
from tests.checkpoint.tiny import CONFIGS
from tests.model import family_cases, make_golden, parity_cases

# One case for each way to cache; the others differ in what whole rows show.
_ALIKE = ("qwen3_moe_step", "gemma3_text_pattern", "phi3", "mistral_full", "deepseek_v2_groups")
CACHED = [name for name in CONFIGS if name not in _ALIKE]
TOLERANCE = 1e-4  # absolute, on logits of standard deviation about 2


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens, positions, segment_ids):
    with jax.default_matmul_precision("highest"):
        return decoder.logits(params, config, decoder.forward(params, config, tokens, positions, segment_ids))


@functools.partial(jax.jit, static_argnums=1)
def _cached(params, config, tokens, cache, num_tokens):
    attend = functools.partial(cached.attend_cached, pages_at_once=2)
    with jax.default_matmul_precision("highest"):
        hidden, cache = decoder.forward_cached(params, config, tokens, cache, num_tokens, attend=attend)
        return decoder.logits(params, config, hidden), cache


@functools.cache
def _ours(name):
    """float32 [3, 300, V], of the rows of `family_cases.ids`."""
    config, rows = family_cases.config(name), family_cases.ids(name)
    return np.asarray(_logits(family_cases.weights(name), config, rows, *family_cases.positions_and_segments()))


@pytest.fixture(scope="module", params=CONFIGS)
def live(request):
    """Name and transformers' model with the same weights."""
    pytest.importorskip("torch", reason="live parity needs torch; recorded logits are compared regardless")
    pytest.importorskip("transformers", reason="as torch")
    return request.param, family_cases.transformers_model(request.param)


def test_whole_padded_and_packed_rows_equal_transformers(live):
    name, model = live
    rows, ours = family_cases.ids(name), _ours(name)
    expected = parity_cases.transformers_logits(model, rows[:1])[0]
    assert 0.5 < expected.std() < 8
    np.testing.assert_allclose(ours[0], expected, rtol=0, atol=TOLERANCE)
    real = np.arange(rows.shape[1]) < np.array(family_cases.LENGTHS)[:, None]
    padded = parity_cases.transformers_logits(model, rows[:2], real)
    np.testing.assert_allclose(ours[1][real[1]], padded[1][real[1]], rtol=0, atol=TOLERANCE)
    start = 0
    for length in family_cases.PARTS:
        alone = parity_cases.transformers_logits(model, rows[:1, :length])[0]
        np.testing.assert_allclose(ours[2][start : start + length], alone, rtol=0, atol=TOLERANCE)
        start += length


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_equal_the_recorded_ones(case):
    """What is recorded of a row holds for every row that begins like it."""
    with np.load(make_golden.FAMILIES) as golden:
        expected = golden[case]
    ours, stride = _ours(case), make_golden.FAMILY_STRIDE
    starts = np.cumsum([0, *family_cases.PARTS[:-1]])
    rows = [ours[0], ours[1][: family_cases.LENGTHS[1]]]
    rows += [ours[2][start : start + length] for start, length in zip(starts, family_cases.PARTS, strict=True)]
    for row in rows:
        recorded = expected[: -(-len(row) // stride)]
        np.testing.assert_allclose(row[::stride], recorded, rtol=0, atol=TOLERANCE, err_msg=f"{len(row)} ids")


@pytest.mark.parametrize("name", CACHED)
def test_cached_steps_give_the_logits_of_whole_rows(name):
    """A prefill of rows of unlike lengths that end within pages, then id by id, beyond two windows."""
    config, params = family_cases.config(name), family_cases.weights(name)
    row, expected = family_cases.ids(name)[0], _ours(name)[0]
    prompt = np.array([70, 1, 33], np.int32)
    cache = cache_lib.init_cache(config, 3, 96, page=16)
    shuffled = np.random.default_rng(0).permutation(18).reshape(3, 6).astype(np.int32)
    cache = dataclasses.replace(cache, table=shuffled)
    tokens = np.where(np.arange(70) < prompt[:, None], row[:70], 0)
    _, cache = _cached(params, config, tokens, cache, prompt)
    for step in range(4):
        logits, cache = _cached(params, config, row[prompt + step][:, None], cache, np.ones(3, np.int32))
        np.testing.assert_allclose(logits[:, 0], expected[prompt + step], rtol=0, atol=TOLERANCE)
