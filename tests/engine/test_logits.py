"""s1jax.engine.logits against float64 numpy with a sort, and against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import logits as logits_lib
from tests.engine import reference

pick = jax.jit(logits_lib.pick)
filtered = jax.jit(logits_lib.filtered)
B, V = 64, 211


def random_controls(rng, rows, greedy=0.2):
    """SamplingParams of every kind, each filter off in a third of the rows."""
    return [
        SamplingParams(
            temperature=0.0 if rng.random() < greedy else float(rng.uniform(0.05, 3)),
            top_k=int(rng.choice([0, 1, 2, rng.integers(1, V + 50)])),
            top_p=float(rng.choice([1.0, rng.uniform(0.01, 1), rng.uniform(0.9, 1)])),
            min_p=float(rng.choice([0.0, rng.uniform(0, 1), rng.uniform(0, 0.1)])),
            seed=int(rng.integers(2**32)),
        )
        for _ in range(rows)
    ]


def random_logits(rng, rows=B):
    scale = rng.uniform(0.1, 8, (rows, 1))
    return (rng.standard_normal((rows, V)) * scale + rng.uniform(-50, 50, (rows, 1))).astype(np.float32)


def near_border(logits, controls):
    """Whether float32 may see an id of the row on the other side of a border than float64."""
    kept = [
        np.isfinite(reference.filter_logits(logits, dataclasses.replace(controls, top_p=top_p, min_p=min_p)))
        for shift in (-2e-6, 2e-6)
        for top_p in [controls.top_p if controls.top_p == 1 else min(max(controls.top_p + shift, 1e-9), 1.0)]
        for min_p in [controls.min_p * (1 + 10 * shift)]
    ]
    return (kept[0] != kept[1]).any()


@pytest.mark.parametrize("seed", range(4))
def test_filters_equal_sorting_in_float64(seed):
    rng = np.random.default_rng(seed)
    compared = 0
    for _ in range(5):
        logits, controls = random_logits(rng), random_controls(rng, B, greedy=0)
        got = np.asarray(filtered(logits, logits_lib.Sampling.of(controls)))
        for row, c, scores in zip(logits, controls, got, strict=True):
            if near_border(row, c):
                continue
            want = reference.filter_logits(row, c)
            np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(want))
            keep = np.isfinite(want)
            np.testing.assert_allclose(scores[keep], want[keep] - want.max(), rtol=2e-6, atol=2e-5)
            compared += 1
    assert compared > 5 * B * 0.9


@pytest.mark.parametrize("seed", range(4))
def test_picks_equal_sorting_in_float64(seed):
    rng = np.random.default_rng(100 + seed)
    agree = 0
    for _ in range(5):
        logits, controls = random_logits(rng), random_controls(rng, B)
        allowed = rng.random((B, V)) < rng.choice([0.1, 0.9])
        allowed[np.arange(B), rng.integers(V, size=B)] = True
        count = rng.integers(0, 30000, B).astype(np.int32)
        got = np.asarray(pick(logits, allowed, logits_lib.Sampling.of(controls), count))
        assert allowed[np.arange(B), got].all()
        want = [
            reference.choose(row, set(np.flatnonzero(~ok)), c, int(n))
            for row, ok, c, n in zip(logits, allowed, controls, count, strict=True)
        ]
        greedy = np.array([c.temperature == 0 for c in controls])
        np.testing.assert_array_equal(got[greedy], np.array(want)[greedy])
        agree += int((got == want).sum())
    assert agree >= 5 * B - 2  # an id at the border of a filter may fall to the other side in float32


@pytest.mark.parametrize(
    "controls",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=7),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=2.0, min_p=0.15),
        SamplingParams(temperature=1.5, top_k=40, top_p=0.9, min_p=0.05),
        SamplingParams(temperature=0.3, top_k=2**31, top_p=0.01),
    ],
)
def test_filters_equal_those_of_transformers(controls):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    warpers = [process.TemperatureLogitsWarper(controls.temperature)]
    if controls.top_k:
        warpers.append(process.TopKLogitsWarper(controls.top_k))
    if controls.top_p < 1:
        warpers.append(process.TopPLogitsWarper(controls.top_p))
    if controls.min_p:
        warpers.append(process.MinPLogitsWarper(controls.min_p))
    logits = random_logits(np.random.default_rng(7))
    want = torch.from_numpy(logits)
    for warper in warpers:
        want = warper(None, want)
    want = want.numpy()
    got = np.asarray(filtered(logits, logits_lib.Sampling.of([controls] * B)))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    shifted = np.where(np.isfinite(want), want - want.max(axis=1, keepdims=True), want)
    np.testing.assert_allclose(got, shifted, atol=5e-5, rtol=1e-5)


def test_draws_follow_the_filtered_distribution():
    """Chi-square over 20,000 draws: rows differ only by how many ids they have."""
    draws = 20000
    logits = np.array([2.0, 1.5, 1.0, 0.0, -1.0, 3.0, -0.5, 0.7], np.float32)
    allowed = np.ones(8, bool)
    allowed[5] = False
    controls = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
    got = pick(
        np.tile(logits, (draws, 1)), np.tile(allowed, (draws, 1)), logits_lib.Sampling.of([controls] * draws),
        np.arange(draws, dtype=np.int32),
    )  # fmt: skip
    expected = draws * reference.softmax(reference.filter_logits(np.where(allowed, logits, -np.inf), controls))
    seen = np.bincount(np.asarray(got), minlength=8)
    assert (seen[expected == 0] == 0).all()
    keep = expected > 0
    assert ((seen - expected)[keep] ** 2 / expected[keep]).sum() < 30  # 99.99 % of draws for up to 6 degrees


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(5)
    logits, controls = random_logits(rng), random_controls(rng, B)
    allowed, count = np.ones((B, V), bool), rng.integers(0, 99, B).astype(np.int32)
    together = np.asarray(pick(logits, allowed, logits_lib.Sampling.of(controls), count))
    order = rng.permutation(B)
    shuffled = pick(logits[order], allowed, logits_lib.Sampling.of([controls[i] for i in order]), count[order])
    np.testing.assert_array_equal(np.asarray(shuffled), together[order])
    alone = [
        int(pick(logits[i : i + 1], allowed[:1], logits_lib.Sampling.of([controls[i]]), count[i : i + 1])[0])
        for i in range(B)
    ]
    np.testing.assert_array_equal(alone, together)


def test_extremes_stay_finite_and_sensible():
    logits = np.array([[1e4, -1e4, 0.0, 9.9e3], [-0.0, 0.0, -1e-30, 1e-30]], np.float32)
    allowed, count = np.ones((2, 4), bool), np.zeros(2, np.int32)
    for controls in (
        SamplingParams(temperature=1e-30),
        SamplingParams(temperature=1e-3, top_p=1e-9),
        SamplingParams(temperature=5.0, top_k=1),
        SamplingParams(temperature=5.0, min_p=1.0),
    ):
        scores = np.asarray(filtered(logits, logits_lib.Sampling.of([controls] * 2)))
        assert not np.isnan(scores).any() and (scores.max(axis=1) == 0).all()
        assert int(pick(logits, allowed, logits_lib.Sampling.of([controls] * 2), count)[0]) == 0


def test_ties_go_to_the_first_and_stay_together():
    logits = np.array([[0.0, 2.0, 1.0, 2.0]], np.float32)
    assert int(logits_lib.best(jnp.asarray(logits))[0]) == 1
    kept = np.isfinite(filtered(logits, logits_lib.Sampling.of([SamplingParams(temperature=1.0, top_k=1)])))
    np.testing.assert_array_equal(kept, [[False, True, False, True]])
    assert 0 <= int(logits_lib.best(jnp.full((1, 4), jnp.nan))[0]) < 4


@pytest.mark.parametrize("size", [1, 7, 40, 96, 384, 1000])
def test_best_is_argmax(size):
    scores = np.random.default_rng(size).integers(0, 9, (50, size)).astype(np.float32)  # full of ties
    scores[:, ::3] = -np.inf
    np.testing.assert_array_equal(logits_lib.best(jnp.asarray(scores)), scores.argmax(axis=1))


def test_log_probability_is_that_of_the_raw_logits():
    rng = np.random.default_rng(3)
    logits, ids = random_logits(rng), rng.integers(V, size=B).astype(np.int32)
    want = [np.log(reference.softmax(row.astype(np.float64)))[i] for row, i in zip(logits, ids, strict=True)]
    np.testing.assert_allclose(logits_lib.log_probability(jnp.asarray(logits), jnp.asarray(ids)), want, atol=2e-5)
