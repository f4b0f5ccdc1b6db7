"""The loop over chunks of logits: which ids a slice of the vocabulary has."""

import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.training.losses.chunks import Columns

# Seven ids over four devices with room for three each; the last has padding only.
SLICES = {"first": [0, 1, 2], "second": [3, 4, 5], "half": [6, -1, -1], "padding": [-1, -1, -1]}


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_picks_its_own_ids(name):
    columns = Columns(jnp.array(SLICES[name]), None, True)
    values = np.random.default_rng(0).normal(size=(2, 1, 3)).astype(np.float32)
    ids = np.array([[[0, 5, 2]], [[3, 6, 1]]])
    expected = [
        [[row[SLICES[name].index(i)] if i in SLICES[name] else 0 for i in of]]
        for (row,), (of,) in zip(values, ids, strict=True)
    ]
    np.testing.assert_array_equal(columns.pick(jnp.array(values), ids), np.float32(expected))


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_adds_to_its_own_ids(name):
    columns = Columns(jnp.array(SLICES[name]), None, True)
    ids = np.array([[[0, 5, 0, 6]], [[3, 2, 1, 3]]])
    added = np.arange(1.0, 9.0, dtype=np.float32).reshape(ids.shape)
    expected = np.ones((2, 1, 3), np.float32)
    for row, token, place in np.ndindex(ids.shape):
        if ids[row, token, place] in SLICES[name]:
            expected[row, token, SLICES[name].index(ids[row, token, place])] += added[row, token, place]
    np.testing.assert_array_equal(columns.put(jnp.ones((2, 1, 3)), ids, added), expected)


def test_the_whole_vocabulary():
    columns = Columns(jnp.arange(5), None, False)
    values = jnp.arange(10.0).reshape(1, 2, 5)
    np.testing.assert_array_equal(columns.pick(values, jnp.array([[[4, 0], [1, 1]]])), [[[4, 0], [6, 6]]])
