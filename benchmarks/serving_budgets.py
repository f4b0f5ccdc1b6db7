"""Random requests: none may exceed a bound by one token, and all get the tokens of the offline engine.

Most go through open schedulers in this process, with a small and a large cache in turn, so that sequences
wait, share prefixes and are preempted; others are cancelled among them. Some hundred go over HTTP, streamed and not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from benchmarks import load
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Output, Request
from s1jax.engine.scheduler import Scheduler
from s1jax.engine.sequence import EncodedRequest, Finished, Sample, Tokens
from s1jax.text.messages import Message

_BATCH = 250  # requests between two comparisons
_CACHES = (1280, 16_384)  # tokens: too few for eight long sequences, and enough to find most prefixes again
_ASK = "Make {} from {}"


def question(rng: random.Random) -> str:
    """A Countdown problem; half of them are of a few, and some are long."""
    rng = random.Random(rng.randrange(20)) if rng.random() < 0.5 else rng
    text = _ASK.format(rng.randrange(10, 100), " ".join(str(rng.randrange(1, 100)) for _ in range(rng.randrange(2, 6))))
    return " ".join([text] * rng.choice([1, 1, 1, 2, 6, 12]))


def params(rng: random.Random) -> SamplingParams:
    """Random bounds and sampling."""
    most = rng.choice([0, 1, 2, 3, rng.randrange(4, 40), rng.randrange(4, 40), rng.randrange(40, 200), 400])
    answer = rng.choice([1, 2, rng.randrange(3, 30), rng.randrange(3, 30)])
    temperature = rng.choice([0.0, 0.7, 1.0, 1.0, 2.0])
    least = rng.choice([0, 0, 0, min(most, 5), rng.randint(0, min(most, 60)), min(most, 60)])
    return SamplingParams(
        max_thinking_tokens=most,
        min_thinking_tokens=least,
        num_waits=rng.choice([0, 0, 1, 2, 3]),
        wait=rng.choice(["Wait", "Wait", "", "so", "no\nWait"]),
        max_answer_tokens=answer,
        # A quarter is kept for the answer, and the closing delimiters are a dozen tokens at most.
        max_completion_tokens=rng.choice([0, 0, (least + 16) * 3 // 2 + rng.randrange(100)]),
        temperature=temperature,
        top_p=rng.choice([1.0, 1.0, 0.9]),
        top_k=rng.choice([0, 0, 5]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        stop=rng.choice([(), (), (), ("=",), ("1", "so"), ("* ",)]),
        seed=rng.randrange(2**32),
        n=rng.randrange(1, 4) if temperature and rng.random() < 0.1 else 1,
    )


def excess(limits: SamplingParams, thinking: int, answer: int, total: int, waits: int, wait: int) -> str:
    """The bound that an output exceeds, in words; empty if it keeps all of them.

    Args:
      limits: of the request.
      thinking: thinking tokens.
      answer: sampled tokens of the answer.
      total: all tokens after think_start.
      waits: ends of thinking that were replaced.
      wait: tokens of the wait string. Where it does not fit below the maximum, thinking is cut, even below the minimum.
    """
    if thinking > limits.max_thinking_tokens:
        return f"{thinking} thinking tokens, and {limits.max_thinking_tokens} are allowed"
    if thinking < limits.min_thinking_tokens and thinking + wait <= limits.max_thinking_tokens:
        return f"{thinking} thinking tokens, and {limits.min_thinking_tokens} are the least"
    if answer > limits.max_answer_tokens:
        return f"{answer} answer tokens, and {limits.max_answer_tokens} are allowed"
    if limits.max_completion_tokens and total > limits.max_completion_tokens:
        return f"{total} tokens, and {limits.max_completion_tokens} are allowed"
    if not limits.min_thinking_tokens and waits > limits.num_waits:
        return f"{waits} waits, and {limits.num_waits} are asked for"
    return ""


class _Traffic:
    """Random requests on their way through one scheduler."""

    def __init__(self, engine: Engine, scheduler: Scheduler, rng: random.Random):
        self._engine, self._scheduler, self._rng = engine, scheduler, rng
        self.found: dict[int, Sample] = {}  # place -> sample
        self.problems: list[str] = []
        self._places: dict[int, int] = {}  # number in the scheduler -> place
        self._doomed: list[int] = []  # numbers that will be cancelled
        self._so_far: dict[int, tuple[int, ...]] = {}

    def run(self, requests: Sequence[EncodedRequest]) -> None:
        """Submits all requests at random moments and steps until they are finished."""
        rng, scheduler, waiting = self._rng, self._scheduler, list(enumerate(requests))
        while waiting or not scheduler.is_idle:
            while waiting and rng.random() < 0.7 and scheduler.stats().waiting < 12:
                self._submit(*waiting.pop(0))
            if self._doomed and rng.random() < 0.5:
                scheduler.cancel(self._doomed.pop(rng.randrange(len(self._doomed))))
            for event in scheduler.step(rng.choice([1, 2, 4, 16, 64])):
                if isinstance(event, (Tokens, Finished)):
                    self._take(event.id, event.sample, isinstance(event, Finished))

    def _submit(self, place: int, request: EncodedRequest) -> None:
        rng, salt = self._rng, bytes([self._rng.randrange(2)])
        settings: dict[str, Any] = {"priority": rng.choice([0, 0, 0, 1, -1]), "salt": salt}
        number = self._scheduler.submit(request, stream=rng.random() < 0.6, **settings)
        self._places[number] = place
        if rng.random() < 0.1:
            self._doomed.append(self._scheduler.submit(request, stream=True, **settings))

    def _take(self, number: int, sample: Sample, finished: bool) -> None:
        place, ids = self._places.get(number), tuple(sample.ids.tolist())
        if place is None:
            return
        before = self._so_far.get(number, ())
        # A stop string takes back tokens after it, but never ones that were shown.
        if ids[: len(before)] != before:
            self.problems.append(f"request {place}: tokens that were streamed have changed")
        self._so_far[number] = ids
        if finished:
            self.found[place] = sample
            del self._so_far[number]


def through_the_scheduler(engine: Engine, count: int, seed: int) -> dict[str, Any]:
    """Runs `count` random requests through a scheduler, and again by the offline engine."""
    schedulers = [engine.open(tokens) for tokens in _CACHES]
    for scheduler in schedulers:
        scheduler.warm_up()
    programs = set(engine.counts.programs)
    problems: list[str] = []
    done = tokens = cached = 0
    begin = time.monotonic()
    new_programs: set[str] = set()
    while done < count:
        rng = random.Random(f"{seed} {done}")  # of this batch alone, so that it can be run again
        requests = [_encode(engine, rng) for _ in range(min(_BATCH, count - done))]
        scheduler = schedulers[done // _BATCH % len(schedulers)]
        traffic = _Traffic(engine, scheduler, rng)
        before, known = set(engine.counts.programs), len(problems)
        traffic.run(requests)
        new_programs |= set(engine.counts.programs) - before - programs
        stats = scheduler.stats()
        if stats.used_pages:
            problems.append(f"after {done} requests: {stats.used_pages} pages are used and no request runs")
        samples = dict(engine.sample(requests, engine.encoder.delimiters))
        problems += traffic.problems
        for place, request in enumerate(requests):
            found, wanted = traffic.found[place], samples[place]
            name = f"request {done + place}"
            problems += [f"{name}: {words}" for words in _differences(engine, request, found, wanted)]
            tokens += len(found.ids)
            cached += found.cached_tokens
        done += len(requests)
        print(f"budgets: {done} requests, {len(problems)} problems, {time.monotonic() - begin:.0f} s", flush=True)
        print("".join(f"  {problem}\n" for problem in problems[known:]), end="", flush=True)
    return {
        "requests": done,
        "tokens": tokens,
        "cached_tokens": cached,
        "preemptions": sum(each.stats().preemptions for each in schedulers),
        "programs_after_warm_up": sorted(new_programs),
        "problems": problems,
    }


def _encode(engine: Engine, rng: random.Random) -> EncodedRequest:
    chosen = dataclasses.replace(params(rng), n=1)
    return engine.encoder.encode_one(Request(question(rng), params=chosen), chosen)


def _differences(engine: Engine, request: EncodedRequest, found: Sample, wanted: Sample) -> list[str]:
    total = len(found.ids) - len(engine.encoder.delimiters.think_start)
    words = excess(request.params, found.thinking_tokens, found.answer_tokens, total, found.waits, len(request.wait))
    differ = [] if found.ids.tolist() == wanted.ids.tolist() else [f"tokens differ, {request.params}"]
    return [*([words] if words else []), *differ]


def body(rng: random.Random, text: str, limits: SamplingParams) -> dict[str, Any]:
    """The request of `/v1/chat/completions` for a question and sampling parameters."""
    budget = rng.choice(["thinking_token_budget", "max_thinking_tokens", "thinking_budget"])
    found = {
        "messages": [{"role": "user", "content": text}],
        budget: limits.max_thinking_tokens,
        "max_completion_tokens": limits.max_completion_tokens or None,
        "stop": list(limits.stop) or None,
    }
    same = (
        "min_thinking_tokens", "num_waits", "wait", "max_answer_tokens", "temperature", "top_p", "top_k", "min_p",
        "repetition_penalty", "seed", "n",
    )  # fmt: skip
    return found | {name: getattr(limits, name) for name in same}


def over_http(url: str, engine: Engine, count: int, seed: int, clients: int = 24) -> dict[str, Any]:
    """Sends `count` random chats, half of them streamed, and compares text and usage with the offline engine."""
    rng = random.Random(seed)
    texts, limits = [question(rng) for _ in range(count)], [params(rng) for _ in range(count)]
    bodies = [body(rng, *pair) for pair in zip(texts, limits, strict=True)]

    async def send() -> list[dict[str, Any]]:
        gate = asyncio.Semaphore(clients)
        async with load.client(url) as http:

            async def one(i: int) -> dict[str, Any]:
                async with gate:
                    return await (_streamed if i % 2 else _whole)(http, bodies[i])

            return list(await asyncio.gather(*(one(i) for i in range(count))))

    replies = asyncio.run(send())
    problems: list[str] = []
    for i, reply in enumerate(replies):
        wanted = engine.generate([Request([Message("user", texts[i])], params=limits[i])])
        problems += [f"chat {i}: {words}" for words in _wrong(reply, wanted, limits[i])]
    return {"requests": count, "streamed": count // 2, "problems": problems}


async def _whole(http: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
    reply = await http.post("/v1/chat/completions", json=dict(body))
    if reply.status_code != 200:
        return {"error": reply.text}
    found = reply.json()
    texts = [(each["message"]["reasoning"] or "", each["message"]["content"] or "") for each in found["choices"]]
    return {"texts": texts, "usage": found["usage"]}


async def _streamed(http: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """A streamed reply, put together choice by choice."""
    texts = [["", ""] for _ in range(body["n"])]
    usage: dict[str, Any] = {}
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/chat/completions", json=asked) as response:
        if response.status_code != 200:
            return {"error": (await response.aread()).decode()}
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", []):
                    texts[choice["index"]][0] += choice["delta"].get("reasoning") or ""
                    texts[choice["index"]][1] += choice["delta"].get("content") or ""
    return {"texts": [tuple(each) for each in texts], "usage": usage}


def _wrong(reply: Mapping[str, Any], wanted: Sequence[Output], limits: SamplingParams) -> list[str]:
    """What a reply has wrong, in words."""
    if "error" in reply:
        return [f"was refused: {reply['error']}"]
    found, usage = [], reply["usage"]
    if reply["texts"] != [(output.thinking, output.answer) for output in wanted]:
        found.append(f"the text differs, {limits}")
    thinking = sum(output.thinking_tokens for output in wanted)
    if usage["completion_tokens_details"]["reasoning_tokens"] != thinking:
        found.append("reasoning_tokens differ")
    if usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]:
        found.append("the sum of usage is wrong")
    if thinking > limits.max_thinking_tokens * len(wanted):
        found.append("the budget is exceeded")
    if limits.max_completion_tokens and usage["completion_tokens"] > limits.max_completion_tokens * len(wanted):
        found.append("max_completion_tokens is exceeded")
    return found
