"""The repetition penalty against transformers, and in the loop against the one-row reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import logits as logits_lib
from s1jax.engine import programs as programs
from tests.engine import cases, reference
from tests.engine.test_engine import make, next_logits, params, random_batch, run, same  # noqa: F401

B, V = 16, 211


def test_equals_that_of_transformers():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((B, V)) * 5).astype(np.float32)
    ids = rng.integers(0, V, (B, 40))
    seen = np.stack([logits_lib.words(row, V) for row in ids])
    for penalty in (1.0, 1.3, 0.7, 5.0):
        want = process.RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(ids), torch.from_numpy(logits))
        sampling = logits_lib.Sampling.of([SamplingParams(repetition_penalty=penalty)] * B)
        got = np.asarray(jax.jit(logits_lib.penalised)(logits, seen, sampling))
        np.testing.assert_allclose(got, want.numpy(), rtol=3e-7)
        if penalty == 1:
            np.testing.assert_array_equal(got, logits)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 211])
def test_a_set_of_ids_is_bits(size):
    ids = np.random.default_rng(size).integers(0, size, (4, 9))
    seen = jnp.stack([logits_lib.words([], size)] * 4)
    for column in ids.T:
        seen = logits_lib.with_id(seen, column)
    np.testing.assert_array_equal(seen, np.stack([logits_lib.words(row, size) for row in ids]))
    bits = (np.asarray(seen)[:, :, None] >> np.arange(32)) & 1
    assert [set(np.flatnonzero(row)) for row in bits.reshape(4, -1)] == [set(row.tolist()) for row in ids]


def penalised(batch):
    """Every second row with a penalty of its own."""
    delimiters, prompts, controls, waits = batch
    penalties = [1.0, 1.2, 1.0, 3.0, 1.0, 0.5] * 3
    rows = zip(controls, penalties, strict=False)
    return delimiters, prompts, [dataclasses.replace(c, repetition_penalty=p) for c, p in rows], waits


@pytest.mark.parametrize("seed", range(40, 44))
def test_rows_equal_the_reference(params, seed):  # noqa: F811
    """Ids of the prompt, sampled and forced ones count; rows without a penalty beside them are what they were."""
    engine, plain = make(params), random_batch(seed)
    delimiters, prompts, controls, waits = batch = penalised(plain)
    samples, before = run(engine, batch), run(engine, plain)
    for b, sample in enumerate(samples):
        want = reference.run(next_logits(params), prompts[b], controls[b], delimiters, waits[b])
        cases.check(sample, want, (seed, b, controls[b], waits[b]))
    same(samples[::2], before[::2])
    assert sum(list(a.ids) != list(b.ids) for a, b in zip(samples[1::2], before[1::2], strict=True)) > 1


def test_no_penalty_compiles_anything(params):  # noqa: F811
    engine = make(params)
    run(engine, random_batch(40))
    compiled = programs.prefill._cache_size(), programs.admit._cache_size(), programs.decode._cache_size()
    run(engine, penalised(random_batch(41)))
    assert (programs.prefill._cache_size(), programs.admit._cache_size(), programs.decode._cache_size()) == compiled
