"""The engine against the one-row reference that runs the model over all ids again for every id."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax import perf
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine import buckets, capacity
from s1jax.engine import logits as logits_lib
from s1jax.engine import programs as programs
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.errors import UserError
from s1jax.model import decoder, quant
from tests.engine import cases, reference
from tests.engine.cases import V
from tests.model import parity_cases

CONFIG = ModelConfig.dense(
    vocab_size=V, d_model=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True,
    context_length=96,
)  # fmt: skip
LENGTH = 96


@pytest.fixture(scope="module")
def params():
    return cases.random_weights(CONFIG)


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


def requests(batch):
    _, prompts, controls, waits = batch
    columns = zip(prompts, controls, waits, strict=True)
    return [EncodedRequest(tuple(p), c, tuple(w), f"row {i}") for i, (p, c, w) in enumerate(columns)]


def make(params, **more):
    return Engine(params, config=CONFIG, **{"slots": 16, "cache_length": LENGTH, **more})


def run(engine, batch, **more):
    samples = dict(engine.sample(requests(batch), batch[0], **more))
    return [samples[i] for i in range(len(batch[1]))]


@pytest.fixture(scope="module")
def engine(params):
    return make(params)


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_reference_without_a_cache(params, engine, seed):
    delimiters, prompts, controls, waits = batch = random_batch(seed)
    for b, sample in enumerate(run(engine, batch)):
        want = reference.run(next_logits(params), prompts[b], controls[b], delimiters, waits[b])
        cases.check(sample, want, (seed, b, controls[b], waits[b]))


def test_every_rule_came_into_play(engine):
    """Guards the random cases above: they are worth something only if they end in all ways."""
    samples = [sample for seed in range(8) for sample in run(engine, random_batch(seed))]
    for field, values in (("thinking_end", {"natural", "cut"}), ("answer_end", {"stop", "length"})):
        for value in values:
            assert sum(getattr(s, field) == value for s in samples) > 10, (field, value)
    assert sum(s.waits > 0 for s in samples) > 10 and sum(s.waits > 1 for s in samples) > 5


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_rows_do_not_depend_on_slots_order_or_each_other(params, engine, slots):
    """40 rows one at a time, three at a time and all at once, shuffled; through 16 slots in order."""
    delimiters, *columns = batch = random_batch(20, rows=40)
    in_order = run(engine, batch)
    order = np.random.default_rng(slots).permutation(40)
    shuffled = (delimiters, *([column[i] for i in order] for column in columns))
    same(run(make(params, slots=slots), shuffled), [in_order[i] for i in order])


def test_a_free_slot_is_filled_while_the_others_go_on(engine):
    """In the steps of a batch that waits for its longest row, the engine gets done more than twice as much."""
    delimiters, prompts, controls, waits = random_batch(20, rows=64)
    answers = np.random.default_rng(0).permutation(np.repeat([2, 60], [48, 16])).tolist()
    controls = [SamplingParams(max_thinking_tokens=0, max_answer_tokens=n) for n in answers]
    delimiters = dataclasses.replace(delimiters, stop=(), end=(), think_start=(1,), newline=(1,), final_answer=())
    before = engine.counts.steps
    samples = run(engine, (delimiters, [p[:3] for p in prompts], controls, waits))
    assert [s.answer_tokens for s in samples] == answers
    needed = sum(len(s.ids) for s in samples) / 16
    assert engine.counts.steps - before < 1.3 * needed
    static = sum(max(len(s.ids) for s in samples[i : i + 16]) for i in range(0, 64, 16))
    assert static > 2 * (engine.counts.steps - before)


def test_samples_of_one_prompt_share_its_prefill_and_its_full_pages(params, monkeypatch):
    monkeypatch.setattr(capacity, "_PAGE", 8)
    delimiters, prompts, *_ = random_batch(24)
    prompt = (prompts[0] * 30)[:29]
    controls = [
        SamplingParams(max_thinking_tokens=9, max_answer_tokens=4, temperature=1.0, seed=seed) for seed in range(12)
    ]
    batch = (delimiters, [prompt] * 12, controls, [()] * 12)
    engine = make(params, slots=4)
    together = run(engine, batch)
    assert engine.counts.prefills == 1 and engine.counts.admissions == 12
    assert len({tuple(s.ids) for s in together}) > 1, "seeds give samples of their own"
    alone = [run(make(params, slots=1), (delimiters, [prompt], [c], [()]))[0] for c in controls]
    same(together, alone)


def test_rows_share_pages_only_where_none_of_them_writes(params, monkeypatch):
    """Prompts that end right before, at and after the border of a page."""
    monkeypatch.setattr(capacity, "_PAGE", 8)
    delimiters = dataclasses.replace(random_batch(25)[0], think_start=(3,))
    for length in (6, 7, 8, 9, 15, 16, 17):
        prompt = np.random.default_rng(length).integers(0, 30, length).tolist()
        controls = [
            SamplingParams(max_thinking_tokens=5 + s, max_answer_tokens=4, temperature=1.0, seed=s) for s in range(4)
        ]
        batch = (delimiters, [prompt] * 4, controls, [(2,)] * 4)
        same(run(make(params, slots=4), batch), run(make(params, slots=1), batch))


def test_the_pool_holds_what_rows_need_and_not_the_longest_times_all(params, monkeypatch):
    monkeypatch.setattr(capacity, "_PAGE", 8)
    seen = []
    start = programs.start
    monkeypatch.setattr(programs, "start", lambda *args, **more: seen.append(args) or start(*args, **more))
    delimiters, prompts, controls, waits = random_batch(26)
    controls = [SamplingParams(max_thinking_tokens=0, max_answer_tokens=2)] * 15 + [
        SamplingParams(max_thinking_tokens=40, max_answer_tokens=5)
    ]
    batch = (delimiters, [p[:4] for p in prompts], controls, waits)
    engine = make(params, cache_length=0)
    samples = run(engine, batch)
    ((_, slots, pages, size, _),) = seen
    assert slots == 16 and pages * size < slots * engine._setup.shapes[0].length / 2
    same(samples, run(make(params), batch))


def test_bfloat16_and_int8_run_and_keep_the_promises(params):
    batch = random_batch(21)
    for sample, controls in zip(run(make(params, dtype="bfloat16", cache_dtype="int8"), batch), batch[2], strict=True):
        assert sample.thinking_tokens <= controls.max_thinking_tokens
        assert np.isfinite(sample.logprob)


def test_an_int8_cache_hardly_changes_the_log_probabilities(params):
    """Greedy rows whose ids agree: their log-probabilities do, to what 1 part in 254 of each key and value makes."""
    batch = random_batch(28, rows=40)
    batch = (*batch[:2], [dataclasses.replace(c, temperature=0.0) for c in batch[2]], batch[3])
    exact, rough = run(make(params), batch), run(make(params, cache_dtype="int8"), batch)
    pairs = [(a, b) for a, b in zip(exact, rough, strict=True) if list(a.ids) == list(b.ids)]
    assert len(pairs) > 30
    differences = [abs(a.logprob - b.logprob) / (1 + abs(a.logprob)) for a, b in pairs]
    assert 0 < max(differences) < 0.1


def test_rows_in_an_int8_cache_do_not_depend_on_the_slots(params):
    batch = random_batch(27, rows=24)
    same(*(run(make(params, cache_dtype="int8", slots=slots), batch) for slots in (1, 16)))


def test_int8_weights_sample_what_the_dequantised_ones_do(params):
    batch = random_batch(29)
    dequantised = parity_cases.dequantised(jax.jit(quant.quantize_params)(params))
    same(run(make(params, weight_dtype="int8"), batch), run(make(jax.device_put(dequantised)), batch))
    with pytest.raises(UserError, match="weight_dtype is 'int2'; it is int8, int4, fp8, mxfp4 or empty"):
        make(params, weight_dtype="int2")
    with pytest.raises(UserError, match="layers/mlp/down/kernel has 48 inputs, which int4 groups of 32 do not divide"):
        make(params, weight_dtype="int4")


def test_no_recompilation_and_one_loop_whatever_is_forced(engine):
    run(engine, random_batch(30))
    compiled = programs.prefill._cache_size(), programs.admit._cache_size(), programs.decode._cache_size()
    for seed in range(31, 34):  # other delimiters, budgets, waits, temperatures, seeds and prompts
        before = dataclasses.replace(engine.counts)
        samples = run(engine, random_batch(seed))
        assert engine.counts.loops - before.loops == 1, "one loop from the prefill to the last row's end"
        assert engine.counts.steps - before.steps < max(len(s.ids) for s in samples)
        assert engine.counts.prefills - before.prefills == 16
    assert (programs.prefill._cache_size(), programs.admit._cache_size(), programs.decode._cache_size()) == compiled


def test_a_wait_costs_its_own_ids_and_nothing_else(engine):
    """Three waits of two ids in place of none: the same prefill and loop, and steps as there are ids."""
    delimiters, prompts, *_ = random_batch(35)
    delimiters = dataclasses.replace(delimiters, end=tuple(range(30)), stop=(1,))
    for waits in (0, 3):
        controls = SamplingParams(max_thinking_tokens=30, num_waits=waits, max_answer_tokens=3)
        before = dataclasses.replace(engine.counts)
        (sample,) = run(engine, (delimiters, [prompts[0]], [controls], [(31, 33)]))
        assert sample.waits == waits
        assert engine.counts.steps - before.steps == len(sample.ids) - len(delimiters.think_start)
        assert engine.counts.prefills - before.prefills == engine.counts.loops - before.loops == 1


def test_a_masked_end_makes_no_other_row_sample_again(params, monkeypatch):
    """A greedy row masks an end at every other step, beside one that is sampled once a step."""
    filtered, calls = logits_lib.filtered, []

    def counting(*given):
        jax.debug.callback(lambda: calls.append(1))
        return filtered(*given)

    monkeypatch.setattr(logits_lib, "filtered", counting)
    config = dataclasses.replace(CONFIG, norm_eps=2e-6)  # programs of its own
    delimiters, prompts, *_ = random_batch(35)
    delimiters = dataclasses.replace(delimiters, end=tuple(range(20)), stop=(1,))
    greedy = SamplingParams(max_thinking_tokens=40, min_thinking_tokens=40, max_answer_tokens=1)
    sampled = dataclasses.replace(greedy, min_thinking_tokens=0, max_thinking_tokens=55, temperature=1.0)
    batch = (delimiters, prompts[:2], [greedy, sampled], [(), ()])
    engine = Engine(params, config=config, slots=2, cache_length=LENGTH)
    assert run(engine, batch)[0].waits > 10
    jax.effects_barrier()
    assert 0 < len(calls) <= engine.counts.steps


def test_the_host_looks_in_every_64_steps(params):
    """Whatever a row's length; waits and budgets bring no further looks."""
    delimiters, prompts, *_ = random_batch(35)
    delimiters = dataclasses.replace(delimiters, end=tuple(range(30)), stop=(1,))
    engine = Engine(params, config=dataclasses.replace(CONFIG, context_length=400), slots=1)
    controls = SamplingParams(max_thinking_tokens=200, num_waits=60, max_answer_tokens=3)
    (sample,) = run(engine, (delimiters, [prompts[0]], [controls], [(31, 33)]))
    assert sample.waits == 60 and engine.counts.steps == len(sample.ids) - len(delimiters.think_start) > 128
    assert engine.counts.loops == -(-engine.counts.steps // 64)


def test_progress_reports_do_not_change_the_result(params, engine):
    batch = random_batch(22)
    seen = []
    reported = run(make(params, slots=1), batch, progress=lambda *now: seen.append(now))
    same(reported, run(engine, batch))
    assert seen == sorted(seen)
    ids, thinking = sum(len(s.ids) for s in reported), sum(s.thinking_tokens for s in reported)
    assert seen[-1] == (len(batch[1]), ids, thinking)


def test_watching_a_row_grow_gives_the_same_sample(engine):
    batch = random_batch(23)
    index = max(range(16), key=lambda i: batch[2][i].max_thinking_tokens)
    request = requests(batch)[index]
    parts = list(engine.watch(request, batch[0]))
    same(parts[-1:], [dict(engine.sample([request], batch[0]))[0]])
    assert len(parts) > 2 and not parts[0].answer_end
    for part in parts:
        assert list(part.ids) == list(parts[-1].ids[: len(part.ids)])


def test_a_row_that_could_outgrow_the_cache_is_refused_before_anything_runs(params, monkeypatch):
    monkeypatch.setattr(programs, "start", None)
    delimiters = cases.random_delimiters(np.random.default_rng(1))
    forced = sum(map(len, (delimiters.think_start, delimiters.newline, delimiters.think_end, delimiters.final_answer)))
    fits = SamplingParams(max_thinking_tokens=20, max_answer_tokens=30)
    long = [1] * (LENGTH - 50 - forced + 1)

    def sample(*prompts, **more):
        rows = [EncodedRequest(tuple(p), fits, (), f"file:{6 + i}") for i, p in enumerate(prompts)]
        make(params, **{"cache_length": 0, **more}).sample(rows, delimiters)

    with pytest.raises(UserError, match=rf"file:7: a prompt of {len(long)} ids.* {LENGTH + 1} ids.* {LENGTH};"):
        sample([1], long)
    with pytest.raises(UserError, match=r"file:6: .* cache length is 40"):
        sample([1], cache_length=40)
    with pytest.raises(UserError, match="cache_length 97 exceeds"):
        sample([1], cache_length=97)
    with pytest.raises(UserError, match="slots is 0"):
        sample([1], slots=0)
    with pytest.raises(UserError, match="file:7: prompt id 40"):
        sample([1], [V])


def test_more_rows_than_memory_holds_are_refused_with_the_number_that_fits(params, monkeypatch):
    page = 64 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim * 4  # bytes
    monkeypatch.setattr(perf, "free_memory", lambda devices: 12 * page)  # one for a prompt, one for logits
    delimiters, prompts, _, waits = random_batch(29)
    batch = (delimiters, prompts, [SamplingParams(max_thinking_tokens=50, max_answer_tokens=5)] * 16, waits)
    with pytest.raises(UserError, match=r"16 rows at one time need a cache of .* 5 rows of 128 ids fit: lower"):
        run(make(params), batch)


def test_a_row_that_just_fits_runs(params, engine):
    delimiters = cases.random_delimiters(np.random.default_rng(1))
    forced = sum(map(len, (delimiters.think_start, delimiters.newline, delimiters.think_end, delimiters.final_answer)))
    prompt = list(range(20))
    batch = (delimiters, [prompt], [SamplingParams(max_thinking_tokens=9, max_answer_tokens=4)], [()])
    same(run(make(params, cache_length=len(prompt) + forced + 13), batch), run(engine, batch))


def test_a_prompt_of_several_pieces_is_that_of_one(params, engine, monkeypatch):
    batch = random_batch(36)
    want = run(engine, batch)
    monkeypatch.setattr(capacity, "_PAGE", 8)
    monkeypatch.setattr(programs, "PIECE", 8)
    jax.clear_caches()
    same(run(make(params), batch), want)


def last_logits(params, config, ids, count):
    """Logits [count, V] after each of the last ids, of a model of one layer and one head, in float64."""
    weights = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    layer = jax.tree.map(lambda a: a[0], weights["layers"])

    def norm(x, scale):
        return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)

    def project(name, x):
        part = layer["attention"][name]
        return x @ part["kernel"].reshape(x.shape[-1], -1) + (part["bias"].reshape(-1) if "bias" in part else 0)

    def rotate(x, places):
        half = config.head_dim // 2
        turn = np.exp(1j * places[:, None] * config.rope_theta ** (-np.arange(half) / half))
        turned = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=1)

    x = weights["embed"]["embedding"][ids]
    places = np.arange(len(ids))
    normed = norm(x, layer["attention_norm"]["scale"])
    q, k = rotate(project("query", normed[-count:]), places[-count:]), rotate(project("key", normed), places)
    scores = np.where(places <= places[-count:, None], q @ k.T / np.sqrt(config.head_dim), -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    x = x[-count:] + project("out", share / share.sum(-1, keepdims=True) @ project("value", normed))
    normed = norm(x, layer["mlp_norm"]["scale"])
    gate, up, down = (layer["mlp"][name]["kernel"] for name in ("gate", "up", "down"))
    x = x + (normed @ gate / (1 + np.exp(-normed @ gate)) * (normed @ up)) @ down
    return norm(x, weights["final_norm"]["scale"]) @ weights["head"]["kernel"]


def test_a_prompt_of_32k_positions():
    shape = dict(vocab_size=V, d_model=16, mlp_dim=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
    config = ModelConfig.dense(**shape, qkv_bias=True, context_length=32768)
    params = jax.tree.map(lambda a: a * 14 if a.ndim > 2 else a, decoder.init_params(config, jax.random.key(1)))
    ids = np.random.default_rng(3).integers(0, 30, 32762)
    delimiters = cases.random_delimiters(np.random.default_rng(1))
    delimiters = dataclasses.replace(delimiters, think_start=(), think_end=(1,), final_answer=(), newline=(1,), stop=())
    controls = SamplingParams(max_thinking_tokens=0, max_answer_tokens=4)
    engine = Engine(params, config=config, slots=1)
    (sample,) = dict(engine.sample([EncodedRequest(tuple(ids.tolist()), controls)], delimiters)).values()
    assert len(sample.ids) == 6 and sample.forced.tolist() == [True, True, False, False, False, False]
    logits = last_logits(params, config, [*ids, *sample.ids[:-1]], 4)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    assert abs(sample.logprob - logits[np.arange(4), sample.ids[2:]].sum()) < 1e-3
    logits[:, [*range(delimiters.num_ids, V), *delimiters.illegal]] = -np.inf
    logits[0, list(delimiters.end)] = -np.inf  # the first sampled id ends nothing
    assert logits.argmax(-1).tolist() == sample.ids[2:].tolist()


def test_no_rows_is_no_error(engine):
    assert list(engine.sample([], cases.random_delimiters(np.random.default_rng(1)))) == []


def test_buckets_are_few_and_fit():
    sizes = sorted({buckets.bucket(n) for n in range(1, 32769)})
    assert sizes[:7] == [32, 48, 64, 96, 128, 192, 256] and sizes[-1] == 32768 and len(sizes) == 21
    assert all(buckets.bucket(n) >= n for n in range(1, 5000))
