"""A load generator for OpenAI-compatible servers, with the definitions of vLLM's `bench serve`.

TTFT   seconds from sending a request to the first text of any channel; the first thinking token counts.
ITL    gaps between chunks that bring text.
TPOT   (E2EL - TTFT) / (output tokens - 1), one figure a request.
E2EL   seconds from sending a request to the end of its stream.
goodput  requests a second that meet all objectives.

Output tokens are those of `usage`, never the number of chunks. TTFA, to the first token of the answer, is a figure of
its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx

_TEXT = ("content", "reasoning", "reasoning_content")
_PERCENTILES = (50, 90, 99)
_FIGURES = ("ttft", "ttfa", "tpot", "e2el")


@dataclasses.dataclass
class Timeline:
    """What happened to one request, in seconds of one clock.

    Attributes:
      sent: when it was sent.
      status: of HTTP; 0: the connection failed.
      chunks: when chunks with text came.
      first_answer: when the first text of the answer came; None: none did.
      ended: when the stream ended.
      output_tokens: of `usage`.
      reasoning_tokens: of `usage`.
      prompt_tokens: of `usage`.
      cached_tokens: of `usage`.
      complete: whether the stream ended as it should.
      text: thinking and answer.
      retry_after: of a refusal.
    """

    sent: float
    status: int = 0
    chunks: list[float] = dataclasses.field(default_factory=list)
    first_answer: float | None = None
    ended: float | None = None
    output_tokens: int = 0
    reasoning_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    complete: bool = False
    text: tuple[str, str] = ("", "")
    retry_after: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request got its whole answer."""
        return self.status == 200 and self.complete and bool(self.chunks)

    @property
    def ttft(self) -> float:
        """Seconds to the first text of any channel."""
        return self.chunks[0] - self.sent

    @property
    def ttfa(self) -> float | None:
        """Seconds to the first text of the answer; None if there was none."""
        return None if self.first_answer is None else self.first_answer - self.sent

    @property
    def e2el(self) -> float:
        """Seconds to the end of the stream."""
        assert self.ended is not None
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None if there is only one."""
        return (self.e2el - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks with text."""
        return [b - a for a, b in zip(self.chunks, self.chunks[1:], strict=False)]

    def meets(self, objectives: Mapping[str, float]) -> bool:
        """Whether the request got its answer and no figure exceeds its objective, in seconds."""
        found = {name: getattr(self, name) for name in objectives} if self.ok else {}
        return self.ok and all(found[name] is None or found[name] <= most for name, most in objectives.items())


def percentile(values: Iterable[float], percent: float) -> float:
    """Returns the nearest-rank percentile, as NumPy's method `inverted_cdf`; nan if there are no values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)] if ordered else math.nan


def summary(timelines: Sequence[Timeline], objectives: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Figures of a run: counts, tokens a second, percentiles in seconds, and goodput if objectives are given.

    The time of a run is from the first request sent to the last stream ended.
    """
    done = [each for each in timelines if each.ok]
    begin = min((each.sent for each in timelines), default=0.0)
    seconds = max((each.ended for each in timelines if each.ended is not None), default=begin) - begin
    tokens = sum(each.output_tokens for each in done)
    found: dict[str, Any] = {
        "requests": len(timelines),
        "complete": len(done),
        "rejected": sum(each.status == 503 for each in timelines),
        "seconds": seconds,
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / seconds if seconds else 0.0,
        "requests_per_second": len(done) / seconds if seconds else 0.0,
    }
    for name in _FIGURES:
        found[name] = _percentiles([v for each in done if (v := getattr(each, name)) is not None])
    found["itl"] = _percentiles([gap for each in done for gap in each.gaps])
    if objectives:
        good = sum(each.meets(objectives) for each in timelines)
        found["objectives"], found["goodput"] = dict(objectives), good / seconds if seconds else 0.0
    return found


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = {f"p{percent}": percentile(values, percent) for percent in _PERCENTILES}
    return {"mean": statistics.fmean(values), **found}


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process of `rate` a second, within `seconds` from 0."""
    rng, now, found = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate)) < seconds:
        found.append(now)
    return found


class Reading:
    """Takes the chunks of one stream and keeps its timeline."""

    def __init__(self, sent: float):
        """Takes when the request was sent."""
        self.timeline = Timeline(sent)
        self._thinking: list[str] = []
        self._answer: list[str] = []

    def line(self, line: str, now: float) -> None:
        """Takes one line of server-sent events that came at `now`; comments and blank lines count for nothing."""
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self.timeline.complete = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.timeline.status = 500  # in the midst of a stream that began well
            return
        self._usage(chunk.get("usage") or {})
        for choice in chunk.get("choices") or []:
            self._choice(choice, now)

    def end(self, now: float) -> Timeline:
        """The stream ended at `now`."""
        self.timeline.ended = now
        self.timeline.text = ("".join(self._thinking), "".join(self._answer))
        return self.timeline

    def _choice(self, choice: Mapping[str, Any], now: float) -> None:
        self.timeline.complete |= bool(choice.get("finish_reason"))  # not every server sends [DONE]
        delta = choice.get("delta") or {"content": choice.get("text"), **choice}
        if not any(delta.get(name) for name in _TEXT):
            return
        self.timeline.chunks.append(now)
        self._thinking.append(delta.get("reasoning") or delta.get("reasoning_content") or "")
        if delta.get("content"):
            self._answer.append(delta["content"])
            if self.timeline.first_answer is None:
                self.timeline.first_answer = now

    def _usage(self, usage: Mapping[str, Any]) -> None:
        timeline = self.timeline
        timeline.output_tokens = usage.get("completion_tokens") or timeline.output_tokens
        timeline.prompt_tokens = usage.get("prompt_tokens") or timeline.prompt_tokens
        details = usage.get("completion_tokens_details") or {}
        timeline.reasoning_tokens = details.get("reasoning_tokens") or timeline.reasoning_tokens
        details = usage.get("prompt_tokens_details") or {}
        timeline.cached_tokens = details.get("cached_tokens") or timeline.cached_tokens


def client(url: str, **settings: Any) -> httpx.AsyncClient:
    """A client of one server, with as many connections as there are requests and no proxy.

    Args:
      url: of the server, without `/v1`.
      settings: further ones of httpx.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    settings = {"timeout": httpx.Timeout(600, connect=30), "trust_env": False, **settings}
    return httpx.AsyncClient(base_url=url, limits=limits, **settings)


async def ask(
    http: httpx.AsyncClient, body: Mapping[str, Any], *, path: str = "/v1/chat/completions", due: float | None = None
) -> Timeline:
    """Streams one request.

    Args:
      http: see `client`.
      body: without `stream`; `stream_options` may be null, for servers that refuse it.
      path: of the API.
      due: when the request should have been sent; its figures count from there if it is late. None: now.
    """
    body = {"stream_options": {"include_usage": True}, **body, "stream": True}
    body = {name: value for name, value in body.items() if value is not None}
    reading = Reading(time.perf_counter() if due is None else due)
    try:
        async with http.stream("POST", path, json=body) as response:
            reading.timeline.status = response.status_code
            reading.timeline.retry_after = response.headers.get("retry-after", "")
            if response.status_code == 200:
                async for line in response.aiter_lines():
                    reading.line(line, time.perf_counter())
            else:
                await response.aread()
    except httpx.HTTPError:
        reading.timeline.complete = False
    return reading.end(time.perf_counter())


async def closed(http: httpx.AsyncClient, bodies: Sequence[Mapping[str, Any]], clients: int) -> list[Timeline]:
    """Sends all requests in order, `clients` of them at one time."""
    waiting = enumerate(bodies)
    found: list[Timeline | None] = [None] * len(bodies)

    async def work() -> None:
        for i, body in waiting:
            found[i] = await ask(http, body)

    await asyncio.gather(*(work() for _ in range(clients)))
    return [each for each in found if each is not None]


async def opened(
    http: httpx.AsyncClient, make: Callable[[int], Mapping[str, Any]], times: Sequence[float]
) -> list[Timeline]:
    """Sends request `make(i)` at `times[i]` seconds from now, whatever became of those before."""
    begin = time.perf_counter()
    tasks = []
    for i, offset in enumerate(times):
        await asyncio.sleep(max(begin + offset - time.perf_counter(), 0))
        tasks.append(asyncio.ensure_future(ask(http, make(i), due=begin + offset)))
    return list(await asyncio.gather(*tasks))
