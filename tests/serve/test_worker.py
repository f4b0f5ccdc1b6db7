"""The engine thread without HTTP."""

import asyncio
import threading

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine.request import Request
from s1jax.errors import UserError
from s1jax.serve.ticket import Unavailable
from s1jax.serve.worker import Limits, Worker


def encoded(engine, **params):
    return engine.encoder.encode(
        Request("question"), SamplingParams(**{"max_answer_tokens": 8, **params}), "the prompt"
    )


def run(engine, use, limits=None):
    """Runs a coroutine function of a ready worker."""

    async def main():
        worker = Worker(lambda: engine, limits)
        worker.start()
        await worker.ready()
        try:
            return await use(worker)
        finally:
            worker.stop()

    return asyncio.run(main())


def test_a_reader_that_lags_gets_its_news_merged(engine):
    asked = encoded(engine, max_thinking_tokens=300, min_thinking_tokens=300, wait="")

    async def use(worker):
        ticket = await worker.submit(asked)
        while not ticket.is_finished:
            await asyncio.sleep(0.01)
        pieces, end = await ticket.next(), await ticket.next()
        return pieces, end, await ticket.outputs()

    pieces, end, (output,) = run(engine, use)
    assert end == [] and pieces[-1][1].output == output
    assert "".join(piece.text for _, piece in pieces if piece.part == "thinking") == output.thinking
    assert [i for _, piece in pieces for i in piece.ids] == list(output.token_ids)


def test_a_cancelled_request_leaves_the_scheduler(engine):
    asked = encoded(engine, max_thinking_tokens=1900, min_thinking_tokens=1900, wait="")

    async def use(worker):
        tickets = [await worker.submit(asked) for _ in range(6)]
        await tickets[0].next()
        before = worker.stats()
        for ticket in tickets:
            ticket.cancel()
        with pytest.raises(Unavailable, match="cancelled"):
            await tickets[0].outputs()
        while worker.stats().running + worker.stats().waiting:
            await asyncio.sleep(0.01)
        ticket = await worker.submit(encoded(engine, max_thinking_tokens=4, max_answer_tokens=2))
        return before, await ticket.outputs()

    before, (output,) = run(engine, use)
    assert before.running + before.waiting == 6 and output.thinking_tokens <= 4


def test_a_request_that_is_too_long_is_refused_and_others_go_on(engine):
    async def use(worker):
        with pytest.raises(UserError, match="2048"):
            await worker.submit(encoded(engine, max_thinking_tokens=5000))
        ticket = await worker.submit(encoded(engine, max_thinking_tokens=4, max_answer_tokens=2))
        return await ticket.outputs(), worker.stats()

    outputs, stats = run(engine, use)
    assert len(outputs) == 1 and stats.running + stats.waiting == 0


def test_the_queue_of_prompt_tokens_is_bounded(engine):
    asked = encoded(engine, max_thinking_tokens=1900, min_thinking_tokens=1900, wait="")

    async def use(worker):
        tickets = [await worker.submit(asked) for _ in range(4)]
        while worker.stats().running < 4:
            await asyncio.sleep(0.01)
        tickets += [await worker.submit(asked) for _ in range(2)]
        with pytest.raises(Unavailable, match="prompt tokens") as caught:
            await worker.submit(asked)
        for ticket in tickets:
            ticket.cancel()
        return caught.value

    error = run(engine, use, Limits(waiting_tokens=2 * (len(asked[0].prompt) + 1)))
    assert error.reason == "queue_full" and error.retry_after >= 1


def test_an_engine_that_fails_ends_all_requests(engine):
    class Broken(Exception):
        pass

    async def use(worker):
        ticket = await worker.submit(encoded(engine, max_thinking_tokens=4, max_answer_tokens=2))
        await ticket.outputs()
        failures = []
        worker.on_failure = failures.append

        def fail(scheduler):
            raise Broken

        asked = encoded(engine, max_thinking_tokens=1900, min_thinking_tokens=1900, wait="")
        ticket = await worker.submit(asked)
        worker._commands.put(fail)
        with pytest.raises(Unavailable, match="failed"):
            await ticket.outputs()
        with pytest.raises(Unavailable, match="failed"):
            await worker.submit(asked)
        worker.join(10)
        return worker.state, failures

    state, failures = run(engine, use)
    assert state == "failed" and isinstance(failures[0], Broken)


def test_the_watchdog_sees_a_step_that_does_not_end(engine):
    stalled, go = threading.Event(), threading.Event()

    async def use(worker):
        worker.on_stall = stalled.set
        ticket = await worker.submit(encoded(engine, max_thinking_tokens=1900, min_thinking_tokens=1900, wait=""))
        worker._commands.put(lambda scheduler: go.wait(30))
        found = await asyncio.to_thread(stalled.wait, 20)
        go.set()
        ticket.cancel()
        return found

    assert run(engine, use, Limits(stall_seconds=0.2))


def test_priorities_order_the_queue(engine):
    """B20: lower is earlier, ties by arrival."""
    long = encoded(engine, max_thinking_tokens=600, min_thinking_tokens=600, wait="")
    short = encoded(engine, max_thinking_tokens=40, min_thinking_tokens=40, wait="")

    async def use(worker):
        first = [await worker.submit(long) for _ in range(4)]
        while worker.stats().running < 4:
            await asyncio.sleep(0.01)
        others = [await worker.submit(short, priority=priority) for priority in (5, 5, 0, 0, -5)]
        await asyncio.gather(*(ticket.outputs() for ticket in (*first, *others)))
        return [ticket.sequences[0].times.admitted for ticket in others]

    times = run(engine, use)
    assert times[4] <= times[2] <= times[3] <= times[0] <= times[1] and times[4] < times[1]


def test_no_traffic_compiles_anything(engine):
    async def use(worker):
        before = set(engine.counts.programs)
        asked = [
            *encoded(engine, max_thinking_tokens=4),
            *encoded(engine, max_thinking_tokens=30, num_waits=3, wait="x" * 64, stop=("a",), temperature=1.0, n=2),
        ]
        tickets = [await worker.submit([each]) for each in asked]
        await tickets[0].next()
        ended = await worker.end_thinking(tickets[1])
        tickets[2].cancel()
        await tickets[1].outputs()
        return before, ended

    before, ended = run(engine, use)
    assert set(engine.counts.programs) == before and ended in (0, 1)


def test_a_request_that_enters_while_the_engine_fails_gets_an_error(engine):
    async def use(worker):
        worker._commands.put(lambda scheduler: 1 / 0)
        with pytest.raises(Unavailable, match="failed"):
            await worker.submit(encoded(engine, max_thinking_tokens=4))
        return worker.error

    assert isinstance(run(engine, use), ZeroDivisionError)
