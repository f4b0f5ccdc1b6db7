"""The timed parts of `benchmarks.serving`: each takes a `Bench` and returns goal, figure, verdict and what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pathlib
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from benchmarks import load, servers, serving_budgets, serving_models
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Request
from s1jax.engine.sequence import EncodedRequest
from s1jax.text.messages import Message

SLOTS = 16
OBJECTIVES = {"ttft": 2.0, "tpot": 0.1}  # seconds, of goodput
_SOAK_TTFT = 5.0  # seconds
_SOAK_QUEUE = 24  # sequences that may wait: about one and a half times the slots
_GRACE = 0.05  # seconds over the prefill, of the first token
_GAP = 0.1  # seconds between two chunks
_FLAT = 1.05  # of memory
_ROUNDS = 3


class Bench:
    """The models, and servers that several parts use one after the other.

    Attributes:
      scale: how much longer or shorter runs are than they are by default.
      python: that has torch, transformers and xllamacpp.
      folder: of the medium model.
    """

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack, scale: float, python: str):
        """Writes the medium model, unless the folder has it."""
        self.folder, self.scale, self.python, self._stack = folder, scale, python, stack
        self._server: servers.Server | None = None
        if not (folder / "model.gguf").exists():
            serving_models.make(folder)
        self.medium = str(folder / "s1jax")
        self.tokenizer = serving_models.make_tokenizer()
        self.words = serving_models.words(self.tokenizer)

    def server(self) -> servers.Server:
        """Our server with the medium model."""
        if self._server is None:
            self._server = self._stack.enter_context(servers.start("s1jax", self.medium, slots=SLOTS))
        return self._server

    def count(self, number: int) -> int:
        """A number of requests or seconds, at this scale."""
        return max(round(number * self.scale), 2)

    def body(self, rng: np.random.Generator, prompt: int, output: int, server: servers.Server) -> dict[str, Any]:
        """A greedy request for `output` tokens; random weights hardly ever end before."""
        return {
            "model": server.model,
            "messages": [{"role": "user", "content": serving_models.prompt(rng, self.words, prompt)}],
            "max_tokens": output,
            "temperature": 0,
            **server.body,
        }

    def mixed(self, rng: np.random.Generator, server: servers.Server) -> dict[str, Any]:
        """A request with a prompt of 16 to 256 tokens and 16 to 128 new ones, log-uniform."""
        prompt, output = (int(math.exp(rng.uniform(math.log(16), math.log(most)))) for most in (256, 128))
        return self.body(rng, prompt, output, server)


def overhead(bench: Bench) -> dict[str, Any]:
    """Streamed tokens a second over HTTP, of `Engine.generate` on the same requests; all are sent at once."""
    small = _small_requests(bench.count(240))
    rng = np.random.default_rng(0)
    text = [serving_models.prompt(rng, bench.words, 64) for _ in range(bench.count(48))]
    medium = [(each, SamplingParams(max_thinking_tokens=44, max_answer_tokens=16)) for each in text]
    found = {}
    with servers.start("s1jax", serving_models.SMALL, slots=SLOTS, length=1024) as server:
        found["0.8 M"] = _overhead(server, serving_models.SMALL, 1024, small, 0.9)
    found["46.8 M"] = _overhead(bench.server(), bench.medium, 4096, medium, 0.97)
    return {
        "goal": "tokens a second over HTTP / Engine.generate: at least 0.90 (0.8 M), 0.97 (46.8 M)",
        "figure": {name: each["ratio"] for name, each in found.items()},
        "met": all(each["ratio"] >= each["goal"] for each in found.values()),
        "details": found,
    }


def _small_requests(count: int) -> list[tuple[str, SamplingParams]]:
    rng = random.Random(0)
    params = SamplingParams(max_thinking_tokens=120, num_waits=1, max_answer_tokens=40)
    numbers = ([rng.randrange(1, 60) for _ in range(4)] for _ in range(count))
    return [(f"Make {rng.randrange(10, 100)} from {' '.join(map(str, each))}", params) for each in numbers]


def _overhead(
    server: servers.Server, model: str, length: int, asked: Sequence[tuple[str, SamplingParams]], goal: float
) -> dict[str, Any]:
    """Alternates rounds of the engine in this process and of the server, which rests meanwhile."""
    engine = Engine(model, slots=SLOTS, cache_length=length)
    start = len(engine.encoder.delimiters.think_start)
    bodies = [{"model": "model", **serving_budgets.body(random.Random(0), *each)} for each in asked]
    requests = [Request([Message("user", text)], params=params) for text, params in asked]
    rates: dict[str, list[float]] = {"engine": [], "http": []}
    for i in range(_ROUNDS + 1):  # the first is a warm-up
        begin = time.perf_counter()
        tokens = sum(len(output.token_ids) - start for output in engine.generate(requests))
        rate = tokens / (time.perf_counter() - begin)
        timelines = asyncio.run(_closed(server, bodies, len(bodies)))
        streamed = load.summary(timelines)
        assert streamed["output_tokens"] == tokens, f"{streamed['output_tokens']} tokens over HTTP, not {tokens}"
        if i:
            rates["engine"].append(rate)
            rates["http"].append(streamed["output_tokens_per_second"])
    ratios = [b / a for a, b in zip(rates["engine"], rates["http"], strict=True)]
    return {"goal": goal, "ratio": statistics.median(ratios), "requests": len(bodies), "tokens": tokens, "rates": rates}


async def _closed(server: servers.Server, bodies: Sequence[Mapping[str, Any]], clients: int) -> list[load.Timeline]:
    async with load.client(server.url) as http:
        return await load.closed(http, bodies, clients)


def first_token(bench: Bench) -> dict[str, Any]:
    """Time to the first token of an idle server, prompts of 64 tokens that it has not seen, one after the other."""
    rng, server = np.random.default_rng(1), bench.server()
    bodies = [bench.body(rng, 64 - 12, 16, server) for _ in range(bench.count(100))]  # 12: of the chat template
    timelines = asyncio.run(_closed(server, bodies, 1))
    figures = load.summary(timelines)
    prefill = _prefill_seconds(bench, rng, bench.count(20))
    return {
        "goal": f"p99 of the time to the first token: at most the prefill + {_GRACE:g} s",
        "figure": {"ttft_p99": figures["ttft"]["p99"], "prefill": prefill},
        "met": figures["ttft"]["p99"] <= prefill + _GRACE,
        "details": figures,
    }


def _prefill_seconds(bench: Bench, rng: np.random.Generator, count: int) -> float:
    """Median seconds of a prefill of 64 tokens by the scheduler alone: its first step, less the time of a later one."""
    engine = Engine(bench.medium, slots=SLOTS, cache_length=4096)
    scheduler = engine.open()
    scheduler.warm_up()
    params, found = SamplingParams(max_thinking_tokens=4, max_answer_tokens=4), []
    for _ in range(count + 1):
        ids = tuple(int(i) for i in rng.integers(0, 31_000, 63))
        scheduler.submit(EncodedRequest(ids, params))
        seconds = []
        while not scheduler.is_idle:
            begin = time.perf_counter()
            scheduler.step(1)
            seconds.append(time.perf_counter() - begin)
        found.append(seconds[0] - statistics.median(seconds[1:]))
    return statistics.median(found[1:])


def between_tokens(bench: Bench) -> dict[str, Any]:
    """Gaps between chunks at 70 % of capacity, and those during which a prompt of 2,000 tokens is prefilled."""
    server = bench.server()
    capacity = asyncio.run(_capacity(bench, server))
    seconds = bench.count(30)
    plain = asyncio.run(_loaded(bench, server, 0.7 * capacity, seconds, []))[0]
    moments = [float(i) for i in range(4, seconds, 8)] or [0.0]
    rest, long = asyncio.run(_loaded(bench, server, 0.7 * capacity, seconds, moments))
    windows = [(each.sent, each.chunks[0]) for each in long if each.chunks]
    gaps = [
        end - begin
        for each in rest
        for begin, end in zip(each.chunks, each.chunks[1:], strict=False)
        if any(begin < last and end > first for first, last in windows)
    ]
    alone, beside = load.summary(plain)["itl"].get("p99", math.nan), load.percentile(gaps, 99)
    return {
        "goal": f"p99 between chunks: at most {_GAP:g} s at 70 % load, {2 * _GAP:g} s while 2,000 tokens are prefilled",
        "figure": {"itl_p99": alone, "itl_p99_during_prefill": beside},
        "met": alone <= _GAP and beside <= 2 * _GAP,
        "details": {
            "capacity_requests_per_second": capacity, "load": load.summary(plain),
            "load_with_long_prompts": load.summary(rest), "long_prompts": load.summary(long),
            "gaps_during_prefill": len(gaps),
        },
    }  # fmt: skip


async def _capacity(bench: Bench, server: servers.Server, clients: int = 2 * SLOTS) -> float:
    """Requests a second with all slots full; the first requests warm it up. A short queue needs fewer clients."""
    rng = np.random.default_rng(2)
    async with load.client(server.url) as http:
        await load.closed(http, [bench.mixed(rng, server) for _ in range(SLOTS)], SLOTS)
        bodies = [bench.mixed(rng, server) for _ in range(bench.count(96))]
        timelines = await load.closed(http, bodies, clients)
    return float(load.summary(timelines)["requests_per_second"])


async def _loaded(
    bench: Bench, server: servers.Server, rate: float, seconds: float, moments: Sequence[float], seed: int = 3
) -> tuple[list[load.Timeline], list[load.Timeline]]:
    """Poisson arrivals of mixed requests, and long prompts at `moments`."""
    rng = np.random.default_rng(seed)
    times = load.arrivals(rate, seconds, seed) or [0.0]
    bodies = [bench.mixed(rng, server) for _ in times]
    long = [bench.body(rng, 2000, 16, server) for _ in moments]
    async with load.client(server.url) as http:
        found = await asyncio.gather(
            load.opened(http, bodies.__getitem__, times), load.opened(http, long.__getitem__, moments)
        )
    return found[0], found[1]


def peers(bench: Bench) -> dict[str, Any]:
    """Goodput of three servers with the same float32 weights: the best of several rates."""
    models = {
        "s1jax": bench.medium,
        "transformers": str(bench.folder / "huggingface"),
        "llama.cpp": str(bench.folder / "model.gguf"),
    }
    found = {}
    for kind, model in models.items():
        with contextlib.ExitStack() as stack:
            server = bench.server()
            if kind != "s1jax":
                started = servers.start(kind, model, slots=SLOTS, length=1024, python=bench.python)
                server = stack.enter_context(started)
            capacity, runs = asyncio.run(_capacity(bench, server)), []
            for share in (0.5, 0.7, 0.9):
                timelines, _ = asyncio.run(_loaded(bench, server, share * capacity, bench.count(15), []))
                runs.append({"share_of_capacity": share, **load.summary(timelines, OBJECTIVES)})
            best = max(run["goodput"] for run in runs)
            found[kind] = {"about": server.about, "capacity": capacity, "goodput": best, "runs": runs}
    ours = found["s1jax"]["goodput"]
    ratios = {kind: ours / each["goodput"] if each["goodput"] else math.inf for kind, each in found.items()}
    return {
        "goal": "goodput: at least 1.5 times that of transformers serve, and once that of llama.cpp's server",
        "figure": {"transformers": ratios["transformers"], "llama.cpp": ratios["llama.cpp"]},
        "met": ratios["transformers"] >= 1.5 and ratios["llama.cpp"] >= 1,
        "details": found,
        "notes": "xllamacpp's wheel has AVX2 and FMA but is built without -march=native: no AVX-512.",
    }


def second_turn(bench: Bench) -> dict[str, Any]:
    """Time to the first token of the second turn of a chat with 1,500 tokens, with their pages cached and without."""
    server, rng = bench.server(), np.random.default_rng(4)
    hits: list[load.Timeline] = []
    misses: list[load.Timeline] = []

    async def chats(count: int) -> None:
        async with load.client(server.url) as http:
            for i in range(count):
                first = bench.body(rng, 1500, 24, server)
                reply = await load.ask(http, {**first, "cache_salt": f"chat {i}"})
                turns = [
                    *first["messages"], {"role": "assistant", "content": reply.text[1]},
                    {"role": "user", "content": serving_models.prompt(rng, bench.words, 16)},
                ]  # fmt: skip
                second = {**first, "messages": turns}
                # Another salt is another cache, which has nothing.
                for salt, into in ((f"chat {i}", hits), (f"other {i}", misses)):
                    into.append(await load.ask(http, {**second, "cache_salt": salt}))

    asyncio.run(chats(bench.count(20)))
    with_cache, without = (load.summary(each)["ttft"].get("p50", math.nan) for each in (hits, misses))
    return {
        "goal": "median time to the first token of the second turn: at most 0.2 of that without the cache",
        "figure": with_cache / without,
        "met": with_cache / without <= 0.2,
        "details": {
            "cached": load.summary(hits), "not_cached": load.summary(misses),
            "cached_tokens": statistics.median(each.cached_tokens for each in hits),
            "cached_tokens_with_another_salt": max(each.cached_tokens for each in misses),
        },
    }  # fmt: skip


def overload(bench: Bench, minutes: float) -> dict[str, Any]:
    """`minutes` of 120 % load: memory, refusals, and the first tokens of admitted requests."""
    memory: list[int] = []
    flags = [f"--max_queue={_SOAK_QUEUE}"]
    with servers.start("s1jax", bench.medium, slots=SLOTS, flags=flags) as server:
        rate = 1.2 * asyncio.run(_capacity(bench, server, SLOTS + 8))

        async def run() -> list[load.Timeline]:
            watching = asyncio.ensure_future(_watch(server, memory))
            timelines, _ = await _loaded(bench, server, rate, 60 * minutes, [], seed=5)
            watching.cancel()
            return timelines

        timelines = asyncio.run(run())
        healthy = httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        figures = load.summary(timelines, {"ttft": _SOAK_TTFT})
    refused = [each for each in timelines if each.status == 503]
    quarter = max(len(memory) // 4, 1)
    growth = max(memory[-quarter:]) / max(memory[quarter : 2 * quarter] or memory)
    late = sum(each.ok and each.ttft > _SOAK_TTFT for each in timelines)
    others = len(timelines) - len(refused) - figures["complete"]
    clean = not others and all(each.retry_after for each in refused) and healthy
    return {
        "goal": f"120 % load: memory grows by at most {_FLAT - 1:.0%}, the rest gets 503 with Retry-After, admitted"
        f" requests have their first token within {_SOAK_TTFT:g} s",
        "figure": {"memory_growth": growth - 1, "rejected": len(refused), "late": late, "failed": others},
        "met": growth <= _FLAT and clean and bool(refused) and late == 0,
        "details": {"minutes": minutes, "rate": rate, "memory": memory, **figures},
    }


async def _watch(server: servers.Server, memory: list[int]) -> None:
    while True:
        memory.append(server.memory())
        await asyncio.sleep(2)
