"""Vectors of texts: against a plain run of the decoder, in any batch and at any padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.engine import embed
from s1jax.errors import UserError
from s1jax.model import decoder
from tests.model import parity_cases

CONFIG = parity_cases.CASES["llama"]
LENGTHS = (1, 32, 7, 33, 48)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, parity_cases.weights(CONFIG))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in LENGTHS]


def reference(params, row):
    """One unpadded row: the mean of its hidden states, in float64."""
    ids = jnp.asarray(row, jnp.int32)[None]
    hidden = decoder.forward(params, CONFIG, ids, jnp.arange(len(row))[None], jnp.ones_like(ids))
    mean = np.asarray(hidden[0], np.float64).mean(0)
    return mean / np.linalg.norm(mean)


def test_padded_rows_have_the_vectors_of_unpadded_ones(params, rows):
    wanted = np.stack([reference(params, row) for row in rows])
    calls = []
    found = embed.embed(params, CONFIG, rows, batch_size=3, progress=calls.append)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found.dtype == np.float32 and calls == [3, 5]
    # Vectors of different rows are further from each other than that.
    assert np.abs(wanted[:, None] - wanted[None]).max(-1)[~np.eye(len(rows), dtype=bool)].min() > 1e-3


def test_batches_and_order_do_not_matter(params, rows):
    found = embed.embed(params, CONFIG, rows, batch_size=3)
    np.testing.assert_allclose(embed.embed(params, CONFIG, rows[::-1], batch_size=2), found[::-1], atol=1e-5)


def test_of_a_long_row_the_first_tokens_count(params, rows):
    short = dataclasses.replace(CONFIG, context_length=20)
    found = embed.embed(params, short, [rows[4], rows[4][:20]], batch_size=2)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], reference(params, rows[4][:20]), atol=1e-5)


def test_standardised_vectors_have_mean_0_and_deviation_1_before_they_are_scaled():
    """So a number that is large for all rows does not decide which rows are near each other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6)) * [1, 1, 1, 1, 1, 100] + [0, 0, 0, 0, 0, 1000]
    x[:, 4] = 3  # the same in all rows
    found = embed.standardised(x)
    wanted = np.stack([(x[:, i] - x[:, i].mean()) / (x[:, i].std() or 1) for i in range(6)], 1)
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(embed.standardised(x * 7 - 5), found, atol=1e-6)
    assert not found[:, 4].any() and found.dtype == np.float32


def test_bad_rows_are_named(params):
    with pytest.raises(UserError, match="row 1 has no tokens"):
        embed.embed(params, CONFIG, [[1], []])
    with pytest.raises(UserError, match=f"row 0: id {CONFIG.vocab_size} is outside"):
        embed.embed(params, CONFIG, [[CONFIG.vocab_size]])
    assert embed.embed(params, CONFIG, []).shape == (0, CONFIG.d_model)
