"""generate against the one-row reference that runs the model over all ids again for every id."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config import Controls, InputError, ModelConfig
from s1jax.model import decoder
from s1jax.sample import generate as generate_lib
from tests.sample import cases, reference
from tests.sample.cases import V

CONFIG = ModelConfig(
    vocab_size=V, d_model=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True,
    context_length=96,
)  # fmt: skip
LENGTH = 96


@pytest.fixture(scope="module")
def params():
    """Random weights, large enough that ids differ clearly from each other and contexts matter."""
    tree = jax.jit(functools.partial(decoder.init_params, CONFIG))(jax.random.key(3))
    return jax.tree.map(lambda a: a * 14 if a.ndim > 2 else a, tree)


@jax.jit
def _all_logits(params, tokens):
    positions = jnp.arange(LENGTH)[None]
    hidden = decoder.forward(params, CONFIG, tokens, positions, jnp.ones_like(tokens))
    return decoder.logits(params, CONFIG, hidden[0])


def next_logits(params):
    """The whole sequence from its start, without a cache."""

    def logits(ids):
        tokens = np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(_all_logits(params, tokens))[len(ids) - 1]

    return logits


def random_batch(seed, rows=16):
    rng = np.random.default_rng(seed)
    delimiters = cases.random_delimiters(rng)
    prompts = [rng.integers(0, 30, rng.integers(1, 30)).tolist() for _ in range(rows)]
    controls = [cases.random_controls(rng) for _ in range(rows)]
    return delimiters, prompts, controls, [cases.random_wait(rng) for _ in range(rows)]


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert list(x.ids) == list(y.ids) and list(x.forced) == list(y.forced)
        for field in ("thinking_tokens", "answer_tokens", "waits", "thinking_end", "answer_end"):
            assert getattr(x, field) == getattr(y, field)
        assert abs(x.logprob - y.logprob) < 1e-3


def run(params, batch, **more):
    delimiters, prompts, controls, waits = batch
    return generate_lib.generate(
        params, CONFIG, prompts, controls, delimiters, waits=waits, cache_length=LENGTH, **more
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_reference_without_a_cache(params, seed):
    delimiters, prompts, controls, waits = batch = random_batch(seed)
    samples = run(params, batch)
    for b, sample in enumerate(samples):
        want = reference.run(next_logits(params), prompts[b], controls[b], delimiters, waits[b])
        cases.check(sample, want, (seed, b, controls[b], waits[b]))


def test_every_rule_came_into_play(params):
    """Guards the random cases above: they are worth something only if they end in all ways."""
    samples = [sample for seed in range(8) for sample in run(params, random_batch(seed))]
    for field, values in (("thinking_end", {"natural", "cut"}), ("answer_end", {"stop", "length"})):
        for value in values:
            assert sum(getattr(s, field) == value for s in samples) > 10, (field, value)
    assert sum(s.waits > 0 for s in samples) > 10 and sum(s.waits > 1 for s in samples) > 5


def test_batch_equals_its_rows_alone_in_any_order(params):
    delimiters, prompts, controls, waits = batch = random_batch(20)
    together = run(params, batch)
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = (delimiters, *([column[i] for i in order] for column in (prompts, controls, waits)))
    same(run(params, shuffled), [together[i] for i in order])
    same(run(params, shuffled, batch_size=1), [together[i] for i in order])


def test_bfloat16_runs_and_keeps_the_promises(params):
    batch = random_batch(21)
    for sample, controls in zip(run(params, batch, dtype="bfloat16"), batch[2], strict=True):
        assert sample.thinking_tokens <= controls.max_thinking_tokens
        assert np.isfinite(sample.logprob)


def test_no_recompilation_and_two_orders_a_batch(params, monkeypatch):
    run(params, random_batch(30))
    sizes = generate_lib._prefill._cache_size(), generate_lib._decode._cache_size()
    calls = []
    decode = generate_lib._decode
    monkeypatch.setattr(generate_lib, "_decode", lambda *args, **more: calls.append(1) or decode(*args, **more))
    for seed in range(31, 34):  # other delimiters, budgets, waits, temperatures, seeds and prompts
        run(params, random_batch(seed))
    assert (generate_lib._prefill._cache_size(), decode._cache_size()) == sizes
    assert len(calls) == 3, "one loop from the prefill to the last row's end"


def test_progress_reports_do_not_change_the_result(params):
    batch = random_batch(22)
    seen = []
    reported = run(params, batch, batch_size=1, progress=lambda done, ids: seen.append((done, ids)))
    same(reported, run(params, batch))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(batch[1]), sum(len(s.ids) for s in reported))


def test_stream_grows_to_the_same_sample(params):
    delimiters, prompts, controls, waits = random_batch(23)
    index = max(range(16), key=lambda i: controls[i].max_thinking_tokens)
    delimiters = dataclasses.replace(delimiters, wait=waits[index])
    parts = list(generate_lib.stream(params, CONFIG, prompts[index], controls[index], delimiters, cache_length=LENGTH))
    whole = generate_lib.generate(params, CONFIG, [prompts[index]], [controls[index]], delimiters, cache_length=LENGTH)
    same(parts[-1:], whole)
    assert len(parts) > 2 and not parts[0].answer_end
    for part in parts:
        assert list(part.ids) == list(parts[-1].ids[: len(part.ids)])


def test_a_row_that_could_outgrow_the_cache_is_refused_before_anything_runs(params, monkeypatch):
    monkeypatch.setattr(generate_lib, "_prefill", None)
    delimiters = cases.random_delimiters(np.random.default_rng(1))
    forced = sum(map(len, (delimiters.think_start, delimiters.newline, delimiters.think_end, delimiters.final_answer)))
    fits = Controls(max_thinking_tokens=20, max_answer_tokens=30)
    prompts = [[1], [1] * (LENGTH - 50 - forced + 1)]
    with pytest.raises(InputError, match=rf"file:7: a prompt of {len(prompts[1])} ids.* {LENGTH + 1} ids.* {LENGTH};"):
        generate_lib.generate(params, CONFIG, prompts, [fits] * 2, delimiters, names=["file:6", "file:7"])
    with pytest.raises(InputError, match=r"row 0: .* cache length is 40"):
        generate_lib.generate(params, CONFIG, prompts, [fits] * 2, delimiters, cache_length=40)
    with pytest.raises(InputError, match="cache_length 97 exceeds"):
        generate_lib.generate(params, CONFIG, prompts, [fits] * 2, delimiters, cache_length=97)
    with pytest.raises(InputError, match="row 1: prompt id 40"):
        generate_lib.generate(params, CONFIG, [[1], [V]], [fits] * 2, delimiters)


def test_a_row_that_just_fits_runs(params):
    delimiters = cases.random_delimiters(np.random.default_rng(1))
    forced = sum(map(len, (delimiters.think_start, delimiters.newline, delimiters.think_end, delimiters.final_answer)))
    prompt = list(range(20))
    controls = Controls(max_thinking_tokens=9, max_answer_tokens=4)
    cache_length = len(prompt) + forced + 13
    exact = generate_lib.generate(params, CONFIG, [prompt], [controls], delimiters, cache_length=cache_length)
    same(exact, generate_lib.generate(params, CONFIG, [prompt], [controls], delimiters, cache_length=LENGTH))


def test_no_prompts_is_no_error(params):
    assert generate_lib.generate(params, CONFIG, [], [], cases.random_delimiters(np.random.default_rng(1))) == []


def test_buckets_are_few_and_fit():
    sizes = sorted({generate_lib._bucket(n) for n in range(1, 32769)})
    assert sizes[:7] == [32, 48, 64, 96, 128, 192, 256] and sizes[-1] == 32768 and len(sizes) == 21
    assert all(generate_lib._bucket(n) >= n for n in range(1, 5000))
