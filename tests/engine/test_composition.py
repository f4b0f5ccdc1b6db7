"""Preemption, ended thinking and longer thinking of one sequence, in any order."""

import dataclasses

import numpy as np
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import programs
from s1jax.engine.capacity import Shape
from s1jax.engine.engine import Engine
from s1jax.engine.resume import reopened
from s1jax.engine.scheduler import Scheduler
from s1jax.engine.sequence import EncodedRequest, Finished, Tokens
from tests.engine import cases
from tests.engine.test_scheduler import CONFIG, DELIMITERS, ROOM, alike, run

LONG = SamplingParams(max_thinking_tokens=60, min_thinking_tokens=60, max_answer_tokens=6)


@pytest.fixture(scope="module")
def engine():
    return Engine(cases.random_weights(CONFIG), config=CONFIG, slots=4)


def scheduler_with(engine, slots, pages):
    return Scheduler(engine._setup, Shape(slots, ROOM, pages), DELIMITERS)


def until(scheduler, number, enough):
    """Steps until the newest sample of a request is enough; returns it."""
    for _ in range(500):
        for event in scheduler.step(1):
            if isinstance(event, Tokens | Finished) and event.id == number and enough(event.sample):
                return event.sample
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_thinking_that_is_stopped_inside_a_wait_goes_on_with_the_rest_of_it(engine, temperature):
    wait, inside = (3, 4, 5, 6, 7), 0
    less = dataclasses.replace(LONG, temperature=temperature, seed=5)
    request = EncodedRequest((1, 2), less, wait)
    more = dataclasses.replace(less, max_thinking_tokens=70)
    (want,) = dict(engine.sample([dataclasses.replace(request, params=more)], DELIMITERS)).values()
    for count in (1, 6, 7, 8, 9, 10, 14):
        scheduler = scheduler_with(engine, 4, 8)
        number = scheduler.submit(request, stream=True)
        sample = until(scheduler, number, lambda sample, count=count: sample.thinking_tokens >= count)
        assert scheduler.end_thinking(number) and not sample.thinking_end
        (stopped,) = run(scheduler).values()
        assert stopped.thinking_end == "stopped" and stopped.thinking_tokens == sample.thinking_tokens
        start = len(DELIMITERS.think_start)
        thought = stopped.forced[start : start + stopped.thinking_tokens]
        inside += bool(thought[-1]) and tuple(stopped.ids[: start + stopped.thinking_tokens][-5:].tolist()) != wait
        scheduler.submit(reopened(request, stopped, more, DELIMITERS))
        (found,) = run(scheduler).values()
        assert found.ids.tolist() == want.ids.tolist() and found.forced.tolist() == want.forced.tolist(), count
        assert (found.waits, found.thinking_end) == (want.waits, want.thinking_end)
    assert inside


def test_waits_below_a_higher_minimum_are_used_again(engine):
    """Thinking longer with a higher minimum, more waits, or both: the tokens are those from the beginning."""
    rng, again, scheduler = np.random.default_rng(0), 0, scheduler_with(engine, 4, 8)
    for i in range(40):
        less = SamplingParams(max_thinking_tokens=20, num_waits=2, max_answer_tokens=3, temperature=1.0, seed=i)
        request = EncodedRequest(tuple(rng.integers(0, 30, 5).tolist()), less, (3, 4))
        more = {"max_thinking_tokens": 45, "min_thinking_tokens": 30 * (i % 3 > 0), "num_waits": 2 + i % 4}
        more = dataclasses.replace(less, **more)
        scheduler.submit(request)
        (sample,) = run(scheduler).values()
        if sample.thinking_end == "natural" and not more.min_thinking_tokens and more.num_waits == 2:
            continue
        scheduler.submit(reopened(request, sample, more, DELIMITERS))
        (found,) = run(scheduler).values()
        (want,) = dict(engine.sample([dataclasses.replace(request, params=more)], DELIMITERS)).values()
        assert found.ids.tolist() == want.ids.tolist() and found.waits == want.waits, i
        again += bool(more.min_thinking_tokens and sample.waits)
    assert again > 3


def test_another_wait_and_another_temperature_keep_what_was_thought(engine):
    """Also inside a wait, which then stays as it is."""
    request, start = EncodedRequest((1, 2), LONG, (3, 4, 5)), len(DELIMITERS.think_start)
    for count in (2, 7, 12, 13):
        scheduler = scheduler_with(engine, 4, 8)
        number = scheduler.submit(request, stream=True)
        until(scheduler, number, lambda sample, count=count: sample.thinking_tokens >= count)
        scheduler.end_thinking(number)
        (stopped,) = run(scheduler).values()
        most = stopped.thinking_tokens + 20
        more = dataclasses.replace(LONG, max_thinking_tokens=most, min_thinking_tokens=most, temperature=1.0, seed=3)
        scheduler.submit(reopened(dataclasses.replace(request, wait=(9, 8)), stopped, more, DELIMITERS))
        (found,) = run(scheduler).values()
        kept = start + stopped.thinking_tokens
        assert (found.ids[:kept].tolist() == stopped.ids[:kept].tolist() and not found.forced[kept]) or (
            found.ids[kept] == 9
        )
        assert most - 1 <= found.thinking_tokens <= most and found.answer_tokens


def test_preempted_sequences_end_their_thinking_once(engine):
    """Whenever it is ended, before, between or after preemptions: `ended` is true just while it thinks."""
    rng, preempted = np.random.default_rng(11), 0
    for steps in (1, 20, 40, 66, 70, 74):
        scheduler = scheduler_with(engine, 4, 5)
        asked = [EncodedRequest(tuple(rng.integers(0, 30, 50).tolist()), LONG, (3,)) for _ in range(4)]
        want = dict(engine.sample(asked, DELIMITERS))
        numbers = [scheduler.submit(request, stream=True) for request in asked]
        newest = {}
        for _ in range(steps):
            newest |= {event.id: event.sample for event in scheduler.step(1) if isinstance(event, Tokens | Finished)}
        last = numbers[-1]
        thought = last not in newest or not newest[last].thinking_end
        assert scheduler.end_thinking(last) == thought
        newest |= run(scheduler)
        preempted += scheduler.stats().preemptions
        assert newest[last].thinking_end == ("stopped" if thought else "cut")
        assert newest[last].thinking_tokens <= 60 and newest[last].answer_tokens >= 1
        others = numbers[:-1]
        assert {n: newest[n].ids.tolist() for n in others} == {n: want[n].ids.tolist() for n in others}
        assert scheduler.stats().used_pages == 0
    assert preempted


def test_an_equal_prompt_of_another_salt_does_not_wait(engine, monkeypatch):
    """Whether a prompt of somebody else is being read shows in nothing, time included."""
    monkeypatch.setattr(programs, "PIECE", 64)
    scheduler = Scheduler(engine._setup, Shape(4, 448, 28), DELIMITERS)
    scheduler.submit(alike(1, 1)[0])
    scheduler.step(1)
    request = EncodedRequest(tuple([7] * 300), LONG, (3,))
    for salt, running in ((b"0", 2), (b"1", 3), (b"0", 3)):
        scheduler.submit(request, salt=salt)
        scheduler._admit()
        assert scheduler.stats().running == running
    run(scheduler)


def test_the_longest_sequence_is_one_that_is_taken():
    """Also where a page reaches beyond the context or the cache length: a server cuts requests to `max_tokens`."""
    weights = cases.random_weights(CONFIG)
    for length, most in ((100, 100), (0, 512)):
        engine = Engine(weights, config=CONFIG, slots=2, cache_length=length)
        scheduler = Scheduler(engine._setup, Shape(2, 128 if length else 512, 16), DELIMITERS)
        assert scheduler.max_tokens == most
        delimiters = sum(map(len, (DELIMITERS.think_end, DELIMITERS.final_answer, DELIMITERS.newline)))
        room = most - len(DELIMITERS.think_start) - delimiters - 2
        scheduler.submit(EncodedRequest((1,), SamplingParams(max_thinking_tokens=room, max_answer_tokens=1)))
