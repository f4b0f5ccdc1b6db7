"""The open scheduler: requests that come at any time, a pool that can be full, cancelling, preemption, priorities."""

import dataclasses

import jax
import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import programs
from s1jax.engine.capacity import Shape
from s1jax.engine.engine import Engine
from s1jax.engine.order import AGEING, first_come
from s1jax.engine.pages import PagePool
from s1jax.engine.resume import reopened
from s1jax.engine.scheduler import Scheduler
from s1jax.engine.sequence import Admitted, EncodedRequest, Finished, Tokens, bounded
from s1jax.errors import UserError
from tests.engine import cases
from tests.engine.test_engine import CONFIG as SHORT
from tests.engine.test_engine import LENGTH

CONFIG = dataclasses.replace(SHORT, context_length=512)
DELIMITERS = cases.random_delimiters(np.random.default_rng(4))
ROOM = 128  # tokens of a sequence, in two pages


@pytest.fixture(scope="module")
def engine():
    return Engine(cases.random_weights(CONFIG), config=CONFIG, slots=4)


def requests(number, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(0, 30, rng.integers(1, 30)).tolist()) for _ in range(number)]
    return [EncodedRequest(prompt, cases.random_controls(rng), cases.random_wait(rng)) for prompt in prompts]


def alike(number, seed):
    """Greedy requests that take some 20 steps each."""
    params = SamplingParams(max_thinking_tokens=20, min_thinking_tokens=15, max_answer_tokens=6)
    return [dataclasses.replace(request, params=params) for request in requests(number, seed)]


def scheduler_of(engine, pages):
    return Scheduler(engine._setup, Shape(4, ROOM, pages), DELIMITERS)


def run(scheduler, max_steps=8):
    """The samples of all requests that finish, by their numbers."""
    found = {}
    while not scheduler.is_idle:
        found |= {event.id: event.sample for event in scheduler.step(max_steps) if not isinstance(event, Admitted)}
    return found


def ids(samples):
    return {number: sample.ids.tolist() for number, sample in samples.items()}


def test_requests_that_come_while_others_run_are_sampled_as_in_a_batch(engine):
    asked = requests(12)
    want = ids(dict(engine.sample(asked, DELIMITERS)))
    scheduler, found, numbers = scheduler_of(engine, 8), {}, []
    for request in asked:
        numbers.append(scheduler.submit(request))
        found |= {event.id: event.sample for event in scheduler.step(3)}
    found |= run(scheduler)
    assert numbers == list(range(12)) and ids(found) == want
    assert scheduler.step() == [] and scheduler.num_tokens() == (0, 0)


def test_a_full_pool_makes_requests_wait(engine):
    """Four slots, and pages for fewer sequences."""
    asked = alike(6, seed=1)
    want = ids(dict(engine.sample(asked, DELIMITERS)))
    scheduler = scheduler_of(engine, 2)
    for request in asked:
        scheduler.submit(request)
    most, found = 0, {}
    while not scheduler.is_idle:
        found |= {event.id: event.sample for event in scheduler.step(1)}
        most = max(most, scheduler.stats().running)
    assert ids(found) == want and 1 <= most <= 2
    long = EncodedRequest((1,) * 70, SamplingParams(max_thinking_tokens=3, max_answer_tokens=2), name="row 0")
    with pytest.raises(UserError, match=r"row 0: the sequence can have .* but the KV cache holds 64"):
        scheduler_of(engine, 1).submit(long)


def test_a_cancelled_request_frees_its_slot_and_its_pages(engine):
    asked = alike(7, seed=2)
    want = ids(dict(engine.sample(asked, DELIMITERS)))
    scheduler = scheduler_of(engine, 8)
    numbers = [scheduler.submit(request) for request in asked]
    scheduler.step(1)
    assert scheduler.cancel(numbers[1]) and scheduler.cancel(numbers[6]) and not scheduler.cancel(numbers[1])
    assert ids(run(scheduler)) == {number: want[number] for number in numbers if number not in (1, 6)}
    assert not scheduler.cancel(numbers[0])
    assert scheduler.stats().used_pages == 0
    scheduler._prefixes[0].evict(8)
    assert [pool.num_free for pool in scheduler._pools] == [8]


def test_a_request_is_cancelled_while_its_prompt_is_prefilled(engine):
    """In the middle of a prompt of several pieces: the pages come back, and the others' tokens stay theirs."""
    rng = np.random.default_rng(11)
    other, params = alike(1, seed=2)[0], SamplingParams(max_thinking_tokens=4, max_answer_tokens=2)
    long = EncodedRequest(tuple(rng.integers(0, 30, 300).tolist()), params, ())
    want = dict(engine.sample([other, long], DELIMITERS))
    scheduler = Scheduler(engine._setup, Shape(4, 384, 12), DELIMITERS)
    first = scheduler.submit(other)
    scheduler.step(1)
    second = scheduler.submit(long)
    scheduler.step(1, 64)
    assert scheduler.stats().used_pages > 1, "a part of the prompt is in the cache"
    assert scheduler.cancel(second)
    assert ids(run(scheduler)) == {first: want[0].ids.tolist()}
    assert scheduler.stats().used_pages == 0
    third = scheduler.submit(long)  # the pages of the half-read prompt are reused or read again: no token differs
    assert ids(run(scheduler)) == {third: want[1].ids.tolist()}


def test_a_streamed_request_has_an_event_at_each_step(engine):
    (request,) = alike(1, seed=3)
    scheduler, events = scheduler_of(engine, 8), []
    scheduler.submit(request, stream=True)
    while not scheduler.is_idle:
        events += scheduler.step(2)
    assert events.pop(0) == Admitted(0)
    *grown, last = events
    assert grown and all(isinstance(event, Tokens) for event in grown) and isinstance(last, Finished)
    whole = last.sample.ids.tolist()
    assert [event.sample.ids.tolist() for event in events] == [whole[: len(event.sample.ids)] for event in events]
    assert len({len(event.sample.ids) for event in events}) == len(events)


def test_sequences_without_pages_are_preempted_and_go_on(engine):
    """Prompts that cross a page while the pool has no other one: outputs are those of a batch."""
    params = SamplingParams(max_thinking_tokens=40, min_thinking_tokens=30, num_waits=1, max_answer_tokens=6)
    rng = np.random.default_rng(7)
    sampled = dataclasses.replace(params, temperature=1.0, repetition_penalty=1.2, seed=5)
    asked = [
        EncodedRequest(tuple(rng.integers(0, 30, 50 + i).tolist()), each, (3, 7))
        for i, each in enumerate([params, sampled, params, sampled])
    ]
    want = dict(engine.sample(asked, DELIMITERS))
    scheduler = scheduler_of(engine, 5)
    for request in asked:
        scheduler.submit(request)
    found = run(scheduler)
    assert ids(found) == ids(want) and scheduler.stats().preemptions > 0
    for number, sample in found.items():
        assert sample.logprobs == pytest.approx(want[number].logprobs, abs=1e-4)
        assert (sample.waits, sample.thinking_end) == (want[number].waits, want[number].thinking_end)


def test_a_beginning_that_was_seen_before_is_not_prefilled_again(engine):
    rng = np.random.default_rng(8)
    first = tuple(rng.integers(0, 30, 70).tolist())
    params = SamplingParams(max_thinking_tokens=12, max_answer_tokens=4)
    scheduler = scheduler_of(engine, 8)

    def ask(prompt, **more):
        number = scheduler.submit(EncodedRequest(prompt, params), **more)
        return run(scheduler)[number]

    once, again = ask(first), ask(first)
    assert (once.cached_tokens, again.cached_tokens) == (0, len(first) + len(DELIMITERS.think_start) - 1)
    assert once.ids.tolist() == again.ids.tolist()
    longer = (*first[:64], 1, 2, 3)
    assert ask(longer, salt=b"another key").cached_tokens == 0
    other = ask(longer)
    assert other.cached_tokens == 64
    (alone,) = dict(engine.sample([EncodedRequest(longer, params)], DELIMITERS)).values()
    assert other.ids.tolist() == alone.ids.tolist()
    stats = scheduler.stats()
    assert (stats.used_pages, stats.running) == (0, 0) and stats.cache_hits == again.cached_tokens + 64


def test_sampled_tokens_are_in_the_cache_for_the_next_turn(engine):
    """A conversation's second prompt begins with the first one and its answer."""
    params = SamplingParams(max_thinking_tokens=60, min_thinking_tokens=60, max_answer_tokens=30)
    request = EncodedRequest(tuple(range(20)), params, (3,))
    scheduler = Scheduler(engine._setup, Shape(4, 256, 16), DELIMITERS)
    scheduler.submit(request)
    (sample,) = run(scheduler).values()
    turn = (*request.prompt, *sample.ids.tolist(), 5, 6)
    scheduler.submit(EncodedRequest(turn, SamplingParams(max_thinking_tokens=3, max_answer_tokens=2)))
    (second,) = run(scheduler).values()
    assert second.cached_tokens == (len(turn) - 2) // 64 * 64 >= 64


def test_priorities_order_the_queue_and_waiting_makes_up_for_them(engine):
    now = [0.0]
    scheduler = Scheduler(engine._setup, Shape(4, ROOM, 2), DELIMITERS, clock=lambda: now[0])
    (one,) = alike(1, seed=4)
    late, early, urgent, old = scheduler.submit(one, priority=5), scheduler.submit(one), 0, 0
    now[0] = AGEING * 7
    urgent, old = scheduler.submit(one, priority=-1), scheduler.submit(one, priority=-3)
    order = [each.id for each in first_come(list(scheduler._waiting))]
    assert order == [early, old, late, urgent]
    assert set(run(scheduler)) == {late, early, urgent, old}


def test_thinking_can_be_ended_while_it_is_sampled(engine):
    params = SamplingParams(max_thinking_tokens=60, min_thinking_tokens=60, max_answer_tokens=6)
    asked = [EncodedRequest((1, 2, i), params, (3,)) for i in range(6)]
    scheduler = scheduler_of(engine, 8)
    numbers = [scheduler.submit(request, stream=True) for request in asked]
    seen = {event.id: event.sample for event in scheduler.step(5) if isinstance(event, Tokens)}
    assert all(scheduler.end_thinking(numbers[i]) for i in (0, 5)), "one runs, one waits"
    found = run(scheduler)
    assert [found[n].thinking_end for n in numbers] == ["stopped", "cut", "cut", "cut", "cut", "stopped"]
    assert found[numbers[5]].thinking_tokens == 0 and found[numbers[0]].thinking_tokens == seen[0].thinking_tokens
    closing = (*DELIMITERS.think_end, *DELIMITERS.final_answer)
    forced = found[numbers[0]].ids[found[numbers[0]].forced].tolist()
    assert tuple(forced[-len(closing) :]) == closing and found[numbers[0]].answer_tokens >= 1
    assert not scheduler.end_thinking(numbers[0])


def test_a_long_prompt_does_not_hold_up_what_runs(engine):
    """One piece is prefilled between two looks at the sequence that is streamed."""
    scheduler = Scheduler(engine._setup, Shape(4, 448, 28), DELIMITERS)
    params = SamplingParams(max_thinking_tokens=100, min_thinking_tokens=100, max_answer_tokens=2)
    first = scheduler.submit(EncodedRequest((1, 2), params, (3,)), stream=True)
    scheduler.step(2)
    long = scheduler.submit(EncodedRequest(tuple([7] * 300), alike(1, 1)[0].params), stream=True)
    looks = []
    while long not in [event.id for event in looks]:
        assert scheduler.stats().prefilling <= 1
        looks += [event for event in scheduler.step(2, 64) if not isinstance(event, Admitted)]
    assert sum(event.id == first for event in looks) >= 5


def test_after_warm_up_no_request_compiles_anything(engine):
    compiled = []
    scheduler = Scheduler(engine._setup, Shape(4, 320, 9), DELIMITERS)
    scheduler.warm_up()
    names = set(engine.counts.programs)

    def count(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    rng = np.random.default_rng(9)
    for i in range(12):
        prompt = tuple(rng.integers(0, 30, rng.integers(1, 200)).tolist())
        request = EncodedRequest(prompt, cases.random_controls(rng), cases.random_wait(rng))
        number = scheduler.submit(request, stream=i % 2 == 0)
        scheduler.step(3)
        if i % 4 == 3:
            scheduler.cancel(number)
        if i % 4 == 2:
            scheduler.end_thinking(number)
    run(scheduler)
    jax.monitoring.unregister_event_duration_listener(count)
    assert compiled == [] and set(engine.counts.programs) == names


def test_all_tokens_together_are_bounded(engine):
    """For every bound: never one token more, and an answer in each."""
    closing = len(DELIMITERS.newline) + len(DELIMITERS.think_end) + len(DELIMITERS.final_answer)
    asked = []
    for total in range(closing + 1, closing + 30):
        params = SamplingParams(max_thinking_tokens=50, num_waits=9, max_answer_tokens=40, max_completion_tokens=total)
        asked.append(EncodedRequest((1, total), bounded(params, DELIMITERS, "row"), (3,)))
    for place, sample in engine.sample(asked, DELIMITERS):
        total = asked[place].params.max_completion_tokens
        assert sample.answer_tokens >= 1 and len(sample.ids) - len(DELIMITERS.think_start) <= total
        assert sample.answer_end == "stop" or len(sample.ids) - len(DELIMITERS.think_start) == total
    with pytest.raises(UserError, match=f"max_completion_tokens is {closing}, but .* give at least {closing + 1}"):
        bounded(SamplingParams(max_completion_tokens=closing), DELIMITERS, "row")


@pytest.mark.parametrize("wait", [(), (3,), (3, 4, 5)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_thinking_longer_goes_on_as_if_it_had_been_asked_for_at_first(engine, wait, temperature):
    """For cut and natural ends; the thinking so far is not sampled again, and most of it is in the cache."""
    rng, ends = np.random.default_rng(10), set()
    scheduler = Scheduler(engine._setup, Shape(4, 320, 20), DELIMITERS)
    for i in range(8):
        most = 2 if i % 2 else int(rng.integers(5, 30))
        less = SamplingParams(max_thinking_tokens=most, max_answer_tokens=5, temperature=temperature, seed=i)
        request = EncodedRequest(tuple(rng.integers(0, 30, 64).tolist()), less, wait)
        scheduler.submit(request)
        (sample,) = run(scheduler).values()
        ends.add(sample.thinking_end)
        more = dataclasses.replace(less, max_thinking_tokens=most + 40, num_waits=2)
        (want,) = dict(engine.sample([dataclasses.replace(request, params=more)], DELIMITERS)).values()
        again = reopened(request, sample, more, DELIMITERS)
        scheduler.submit(again)
        (found,) = run(scheduler).values()
        assert found.ids.tolist() == want.ids.tolist() and found.forced.tolist() == want.forced.tolist()
        assert (found.waits, found.thinking_end) == (want.waits, want.thinking_end)
        assert found.cached_tokens >= 64
        with pytest.raises(UserError, match="to think longer"):
            reopened(request, sample, less, DELIMITERS)
    assert ends == {"cut", "natural"}


def test_pages_are_counted():
    pool = PagePool(4)
    first = pool.try_take(3)
    assert sorted(first) == [0, 1, 2] and pool.num_free == 1 and pool.try_take(2) is None and pool.num_free == 1
    pool.incref(first[:2])
    pool.decref(first)
    assert pool.num_free == 2 and set(pool.try_take(2)) == {3, first[2]} and pool.try_take(1) is None
    pool.decref(first[:2])
    assert pool.num_free == 2 and pool.try_take(0) == []


def test_new_weights_are_used_without_recompilation(engine):
    asked, old = requests(4, seed=5), cases.random_weights(CONFIG)
    want = ids(dict(engine.sample(asked, DELIMITERS)))
    other = jax.tree.map(lambda leaf: leaf * 0.5, old)
    compiled = programs.prefill._cache_size(), programs.admit._cache_size(), programs.decode._cache_size()
    engine.update_weights(other)
    found = ids(dict(engine.sample(asked, DELIMITERS)))
    engine.update_weights(old)
    assert ids(dict(engine.sample(asked, DELIMITERS))) == want != found
    assert found == ids(dict(Engine(other, config=CONFIG, slots=4, cache_length=LENGTH).sample(asked, DELIMITERS)))
    assert (programs.prefill._cache_size(), programs.admit._cache_size(), programs.decode._cache_size()) == compiled
    with pytest.raises(UserError, match="the new weights have other names or shapes"):
        engine.update_weights(cases.random_weights(dataclasses.replace(CONFIG, vocab_size=64)))
