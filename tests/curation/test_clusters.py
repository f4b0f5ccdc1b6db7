"""Clusters and the word vectors that need no model, against exhaustive search, scikit-learn's formula and shuffles."""

import itertools
import math
import random

import numpy as np
import pytest

from s1jax.curation import clusters, word_vectors
from s1jax.errors import UserError


def blobs(rng, centres, size, spread=0.1):
    """Rows around centres, and which centre each is of."""
    truth = np.repeat(np.arange(len(centres)), size)
    return centres[truth] + spread * rng.standard_normal((len(truth), centres.shape[1])), truth


def cost(x, found):
    """Sum of the squared distances to the means of clusters, in float64."""
    return sum(((x[found == c] - x[found == c].mean(0)) ** 2).sum() for c in set(found))


def test_clusters_that_are_far_from_each_other_are_found_in_any_order():
    rng = np.random.default_rng(0)
    x, truth = blobs(rng, 5 * rng.standard_normal((7, 16)), 40)
    ids = [f"{n:04x}" for n in rng.permutation(len(x))]
    found = clusters.assign(ids, x, 7, seed=1)
    assert len({(truth[i], found[name]) for i, name in enumerate(ids)}) == 7
    for seed in range(3):
        order = random.Random(seed).sample(range(len(x)), len(x))
        assert clusters.assign([ids[i] for i in order], x[order], 7, seed=1) == found
    # Numbers follow the smallest ids, and a row that is there twice changes nothing.
    assert list(dict.fromkeys(found[name] for name in sorted(ids))) == list(range(7))
    assert clusters.assign([*ids, ids[3]], np.concatenate([x, x[3:4]]), 7, seed=1) == found


def test_the_division_is_a_local_optimum_near_the_best_one():
    """Against all divisions of 8 points into 2 clusters."""
    ratios = []
    for seed in range(10):
        x = np.random.default_rng(seed).standard_normal((8, 2))
        found = clusters.assign([str(i) for i in range(8)], x, 2)
        own = cost(x, np.array([found[str(i)] for i in range(8)]))
        every = [cost(x, np.array(way)) for way in itertools.product((0, 1), repeat=8) if 0 < sum(way) < 8]
        ratios.append(own / min(every))
        for i in range(8):  # no move of one point to the nearer mean is left
            means = [np.mean([x[j] for j in range(8) if found[str(j)] == c], axis=0) for c in (0, 1)]
            assert np.linalg.norm(x[i] - means[found[str(i)]]) <= np.linalg.norm(x[i] - means[1 - found[str(i)]]) + 1e-9
    assert min(ratios) > 1 - 1e-9 and np.mean(ratios) < 1.15


def test_equal_and_few_rows():
    ids = [str(i) for i in range(6)]
    assert sorted(set(clusters.assign(ids, np.ones((6, 3)), 3).values())) == [0, 1, 2]
    assert set(clusters.assign(ids, np.ones((6, 3)), 1).values()) == {0}
    assert len(set(clusters.assign(ids, np.random.default_rng(0).random((6, 3)), 6).values())) == 6
    for count in (0, 7):
        with pytest.raises(UserError, match="6 different questions cannot be divided into"):
            clusters.assign(ids, np.ones((6, 3)), count)


def test_another_seed_starts_elsewhere():
    x = np.random.default_rng(3).standard_normal((300, 8))
    ids = [f"{i:03}" for i in range(300)]
    found = [tuple(clusters.assign(ids, x, 12, seed=seed).values()) for seed in (0, 1)]
    assert found[0] != found[1]
    numbers = [clusters.uniform(seed, number) for seed in range(40) for number in range(100)]
    assert len(set(numbers)) == 4000 and min(numbers) >= 0 and max(numbers) < 1
    assert abs(np.mean(numbers) - 0.5) < 0.02


def test_word_vectors_have_tf_idf_weights():
    """Against the formula, with a width at which no two words share a place."""
    texts = ["a cat and a dog", "a cat", "seven dogs and 12 cats", ""]
    width = 1 << 20
    found = word_vectors.embed(texts, width)
    holders = {"a": 2, "cat": 2, "and": 2, "dog": 1, "seven": 1, "dogs": 1, "0": 1, "cats": 1}
    assert len({word_vectors._spot(word, width)[0] for word in holders}) == len(holders)
    idf = {word: math.log(5 / (1 + number)) + 1 for word, number in holders.items()}
    first = {"a": (1 + math.log(2)) * idf["a"], "cat": idf["cat"], "and": idf["and"], "dog": idf["dog"]}
    length = math.sqrt(sum(weight**2 for weight in first.values()))
    for word, weight in first.items():
        place, sign = word_vectors._spot(word, width)
        assert found[0, place] == pytest.approx(sign * weight / length, rel=1e-6)
    assert np.count_nonzero(found[0]) == 4 and not found[3].any()
    np.testing.assert_allclose(np.linalg.norm(found[:3], axis=1), 1, rtol=1e-6)


def test_word_vectors_do_not_depend_on_order_or_repeats():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["sum", "angle", "prime", "graph", "mass", "5"], k=8)) for _ in range(60)]
    found = word_vectors.embed(texts)
    order = rng.sample(range(60), 60)
    np.testing.assert_array_equal(word_vectors.embed([texts[i] for i in order]), found[order])
    np.testing.assert_array_equal(word_vectors.embed([*texts, texts[0]])[:60], found)


def test_hashed_word_vectors_keep_the_products_of_unhashed_ones():
    rng = random.Random(1)
    vocabulary = [f"{a}{b}" for a in "abcdefghij" for b in "qrstuvwxyz"]
    texts = [" ".join(rng.choices(vocabulary, k=30)) for _ in range(40)]
    exact, hashed = (word_vectors.embed(texts, width) for width in (1 << 16, 4096))
    assert np.abs(exact @ exact.T - hashed @ hashed.T).max() < 0.12
