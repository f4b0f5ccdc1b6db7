"""The open scheduler: requests that come at any time, a pool that can be full, cancelling, new weights."""

import dataclasses

import jax
import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import programs
from s1jax.engine.capacity import Shape
from s1jax.engine.engine import Engine
from s1jax.engine.pages import PagePool
from s1jax.engine.scheduler import Scheduler
from s1jax.engine.sequence import EncodedRequest, Finished, Tokens
from s1jax.errors import UserError
from tests.engine import cases
from tests.engine.test_engine import CONFIG, LENGTH

DELIMITERS = cases.random_delimiters(np.random.default_rng(4))
ROOM = 128  # tokens of a sequence, in two pages


@pytest.fixture(scope="module")
def engine():
    return Engine(cases.random_weights(CONFIG), config=CONFIG, slots=4, cache_length=LENGTH)


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
        found |= {event.id: event.sample for event in scheduler.step(max_steps)}
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
        most = max(most, len(scheduler._occupied()))
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
    scheduler._forget_prompt()
    assert [pool.num_free for pool in scheduler._pools] == [8]


def test_a_streamed_request_has_an_event_at_each_step(engine):
    (request,) = alike(1, seed=3)
    scheduler, events = scheduler_of(engine, 8), []
    scheduler.submit(request, stream=True)
    while not scheduler.is_idle:
        events += scheduler.step(2)
    *grown, last = events
    assert grown and all(isinstance(event, Tokens) for event in grown) and isinstance(last, Finished)
    whole = last.sample.ids.tolist()
    assert [event.sample.ids.tolist() for event in events] == [whole[: len(event.sample.ids)] for event in events]
    assert len({len(event.sample.ids) for event in events}) == len(events)


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
