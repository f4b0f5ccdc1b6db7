"""log_likelihoods against transformers' recorded logits and softmax in float64, and against its own definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.engine import score
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.plan import flops
from tests.model import make_golden, parity_cases

CONFIG = parity_cases.CASES["llama"]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, parity_cases.weights(CONFIG))


def reference(logits, row, predicted):
    """Sum of log-probabilities of the last `predicted` ids of a row and whether they are all the best, in float64.

    logits [T, V] are those after each of the row's ids.
    """
    logits = np.asarray(logits, np.float64)
    places = np.arange(len(row) - predicted, len(row))
    before, ids = logits[places - 1], np.asarray(row)[places]
    log_sum = np.log(np.exp(before - before.max(-1, keepdims=True)).sum(-1)) + before.max(-1)
    return float((before[np.arange(predicted), ids] - log_sum).sum()), bool((before.argmax(-1) == ids).all())


def logits_after(params, config, row):
    """[T, V] by one plain run of the decoder."""
    ids = jnp.asarray(row, jnp.int32)[None]
    hidden = decoder.forward(params, config, ids, jnp.arange(len(row))[None], jnp.ones_like(ids))
    return decoder.logits(params, config, hidden[0])


def close(found, wanted):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in wanted], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", parity_cases.WHOLE)
def test_scores_equal_transformers_logits(name):
    """Continuations of every length, from one id to chunks and chunks of them, in batches that don't come out even."""
    config = parity_cases.CASES[name]
    with np.load(make_golden.PATH) as golden:
        logits = golden[f"{name}/whole"]
    rows = parity_cases.tokens(config, make_golden.SHAPE).tolist()
    pairs, wanted = [], []
    for b, length, context in [(b, n, c) for b in (0, 1) for n in (2, 31, 32, 33, 34, 48) for c in range(1, n, 7)]:
        pairs.append((rows[b][:context], rows[b][context:length]))
        wanted.append(reference(logits[b], rows[b][:length], length - context))
        best = int(logits[b][context - 1].argmax())  # hardly any random continuation is the greedy one
        pairs.append((rows[b][:context], [best]))
        wanted.append(reference(logits[b], [*rows[b][:context], best], 1))
    weights = jax.tree.map(jnp.asarray, parity_cases.weights(config))
    with jax.default_matmul_precision("highest"):
        found = score.log_likelihoods(weights, config, pairs, batch_size=37)
    close(found, wanted)
    assert {greedy for _, greedy in found} == {False, True}


def test_batches_only_change_the_order_of_work(params):
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(61, size=rng.integers(1, 40)).tolist(), rng.integers(61, size=rng.integers(0, 24)).tolist())
        for _ in range(9)
    ]
    finished = []
    one_by_one = [score.log_likelihoods(params, CONFIG, [pair])[0] for pair in pairs]
    close(score.log_likelihoods(params, CONFIG, pairs, batch_size=4, progress=finished.append), one_by_one)
    assert finished == [4, 8, 9]
    assert score.log_likelihoods(params, CONFIG, []) == []


def test_an_empty_continuation_is_certain(params):
    assert score.log_likelihoods(params, CONFIG, [([3], []), ([3, 4, 5], [])]) == [(0.0, True)] * 2


def test_long_contexts_lose_their_left_end(params):
    short = dataclasses.replace(CONFIG, context_length=20)
    row = parity_cases.tokens(CONFIG, (50,)).tolist()
    kept = row[-21:]
    logits = logits_after(params, CONFIG, kept)
    pairs = [(row[: 50 - predicted], row[50 - predicted :]) for predicted in (1, 7, 20)]
    wanted = [reference(logits, kept, predicted) for predicted in (1, 7, 20)]
    close(score.log_likelihoods(params, short, pairs), wanted)


def test_of_equally_probable_ids_the_first_is_the_greedy_one(params):
    even = jax.tree.map(jnp.zeros_like, params)
    (first, second) = score.log_likelihoods(even, CONFIG, [([5], [0, 0]), ([5], [0, 1])])
    assert (first[1], second[1]) == (True, False)
    np.testing.assert_allclose([first[0], second[0]], -2 * np.log(61), rtol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_adds_up_in_float32(params):
    row = parity_cases.tokens(CONFIG, (40,)).tolist()
    pair = row[:10], row[10:]
    ((exact, _),) = score.log_likelihoods(params, CONFIG, [pair])
    ((rounded, _),) = score.log_likelihoods(params, CONFIG, [pair], dtype="bfloat16")
    assert 0 < abs(rounded - exact) < 0.02 * abs(exact)


def test_few_programs(params):
    """One for each power of two, whatever the lengths of contexts and continuations."""
    config = dataclasses.replace(CONFIG, norm_eps=2e-5)  # compiled by no other test
    ids = parity_cases.tokens(config, (300,)).tolist()
    before = score._score._cache_size()
    for length, predicted in [(3, 1), (20, 19), (33, 4), (34, 4), (64, 60), (65, 1), (100, 50), (129, 2), (200, 1)]:
        score.log_likelihoods(params, config, [(ids[: length - predicted], ids[:predicted])] * 2)
    assert score._score._cache_size() - before == 4  # 32, 64, 128, 256


def test_logits_of_whole_rows_never_exist():
    config = dataclasses.replace(CONFIG, vocab_size=5000, context_length=4096)
    batch, length = 4, 2048
    arguments = (
        decoder.abstract_params(config),
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, length + 1), (batch,), (batch,))),
    )
    traced = functools.partial(score._score, config=config, dtype="float32", implementation="chunked")
    sizes = []

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(variable.aval.size for variable in equation.outvars)
            for inner in flops.bodies(equation.params):
                collect(inner)

    collect(jax.make_jaxpr(traced)(*arguments).jaxpr)
    assert max(sizes) < batch * length * config.vocab_size / 8


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (([], [1]), "pair 1: the context is empty"),
        (([1], [2] * 21), "pair 1: a continuation of 21 ids exceeds .* context length of 20"),
        (([1, 61], [2]), "pair 1: id 61 is outside the model's vocabulary of 61"),
        (([1], [-1]), "pair 1: id -1 is outside"),
    ],
)
def test_wrong_pairs_are_named(params, pair, sentence):
    with pytest.raises(UserError, match=sentence):
        score.log_likelihoods(params, dataclasses.replace(CONFIG, context_length=20), [([1], [2]), pair])
