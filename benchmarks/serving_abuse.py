"""Clients that hang up and requests that make no sense: nothing may be lost, and nothing may fail.

hang-ups  clients leave at random moments: while they send, wait in the queue, are prefilled, stream, or wait for a
          whole reply. Afterwards no slot and no page is in use, and a request gets the tokens that it got before.
fuzz      random values in random fields, damaged bodies, paths and methods, damaged HTTP, and what schemathesis makes
          of the server's own document. No reply is a 5xx but 503, and the server prints no traceback.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks import load
from benchmarks.servers import Server

_CLIENTS = 48  # at one time, three for each slot
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_CHAT = "/v1/chat/completions"
_TEXT = "Make 24 from 3 8 1 2"
_BUSY = ("s1jax:num_requests_running", "s1jax:num_requests_waiting", "s1jax:kv_cache_usage_perc")
_IDLE_SECONDS = 60.0


def _long(rng: random.Random) -> dict[str, Any]:
    """A request that does not end by itself for a while; half of them have a long prompt."""
    repeats = rng.choice([1, 1, 24])
    return {
        "messages": [{"role": "user", "content": f"{' '.join([_TEXT] * repeats)} {rng.randrange(100)}"}],
        "min_thinking_tokens": 400, "thinking_token_budget": 400, "max_answer_tokens": 16, "seed": rng.randrange(2**32),
        "stream": rng.random() < 0.5,
    }  # fmt: skip


async def _leave(http: httpx.AsyncClient, body: Mapping[str, Any], seconds: float) -> bool:
    """Sends a request and leaves after some time; returns whether the reply was complete before."""

    async def read() -> None:
        async with http.stream("POST", _CHAT, json=dict(body)) as response:
            async for _ in response.aiter_raw():
                pass

    try:
        await asyncio.wait_for(read(), seconds)
    except TimeoutError:
        return False
    return True


async def _half(url: httpx.URL, rng: random.Random) -> None:
    """Sends a part of a request and leaves."""
    data = json.dumps(_long(rng)).encode()
    head = f"POST {_CHAT} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(whole[: rng.randrange(len(whole))])
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    await asyncio.sleep(rng.random() * 0.1)
    writer.close()


async def _until_idle(http: httpx.AsyncClient) -> float:
    """Seconds until no slot and no page is in use."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < _IDLE_SECONDS:
        text = (await http.get("/metrics")).text
        if all(float(line.split()[1]) == 0 for line in text.splitlines() if line.startswith(_BUSY)):
            return time.perf_counter() - begin
        await asyncio.sleep(0.002)
    raise AssertionError(f"slots or pages are still in use {_IDLE_SECONDS:g} s after the last client left")


async def _control(http: httpx.AsyncClient) -> Any:
    body = {
        "messages": [{"role": "user", "content": _TEXT}],
        "thinking_token_budget": 60,
        "max_answer_tokens": 12,
        "seed": 3,
    }
    reply = await http.post(_CHAT, json=body)
    return reply.json()["choices"][0]["message"]


async def hang_ups(server: Server, clients: int, alone: int, seed: int) -> dict[str, Any]:
    """Lets `clients` leave at random moments, then `alone` more one after the other, whose time is taken.

    Returns:
      how many left before the end, and the seconds from leaving to a free slot.
    """
    rng, counts = random.Random(seed), collections.Counter[str]()
    gate, url = asyncio.Semaphore(_CLIENTS), httpx.URL(server.url)
    async with load.client(server.url) as http:
        before = await _control(http)

        async def one() -> None:
            async with gate:
                kind = rng.random()
                if kind < 0.1:
                    counts["while sending"] += 1
                    await _half(url, rng)
                    return
                body = _long(rng)
                complete = await _leave(http, body, rng.choice([0.003, 0.03, 0.3, 1.0]) * 2 * rng.random())
                counts["complete" if complete else "streaming" if body["stream"] else "waiting for a whole reply"] += 1

        await asyncio.gather(*(one() for _ in range(clients)))
        after_all = await _until_idle(http)
        seconds = []
        for _ in range(alone):
            if not await _leave(http, _long(rng), 0.02 + 0.3 * rng.random()):
                seconds.append(await _until_idle(http))
        same = await _control(http) == before
    return {
        "clients": clients, "left": dict(counts), "idle_after_all": after_all,
        "idle_after_one": {
            "clients": len(seconds), "median": statistics.median(seconds), "max": max(seconds),
            "p99": load.percentile(seconds, 99),
        },
        "same_answer_afterwards": same, "traceback": "Traceback" in server.output(),
    }  # fmt: skip


def _valid(path: str) -> dict[str, Any]:
    """A small request of an API."""
    small: dict[str, Any] = {"max_completion_tokens": 24, "temperature": 0, "seed": 1}
    user = [{"role": "user", "content": _TEXT}]
    return {
        "/v1/chat/completions": {"messages": user, **small},
        "/v1/completions": {"prompt": _TEXT, **small},
        "/v1/responses": {"input": _TEXT, "max_output_tokens": 24, "temperature": 0},
        "/v1/messages": {"messages": user, "max_tokens": 24, "temperature": 0},
        "/tokenize": {"prompt": _TEXT},
        "/detokenize": {"tokens": [1, 2, 3]},
        "/v1/chat/completions/control": {"id": "chatcmpl-none", "action": "reasoning_end"},
    }[path]


def _junk(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value."""
    simple = [
        None, True, False, 0, 1, -1, 2, 3, 64, 0.5, 1.5, -0.0, 1e308, 2**31, 2**63, 10**400, "", "64", "none", "high",
        "enabled", "disabled", "adaptive", "\ud800", "\x00", "漢", "</think>", "<|endoftext|>", "x" * 3000, _TEXT,
        float("nan"), float("inf"),
    ]  # fmt: skip
    kind = rng.random()
    if depth > 3 or kind < 0.6:
        return rng.choice(simple)
    if kind < 0.8:
        return [_junk(rng, depth + 1) for _ in range(rng.randrange(5))]
    keys = [
        "role", "content", "type", "text", "budget_tokens", "effort", "max_tokens", "enable_thinking", "id", "function",
        "name", "parameters", "include_usage", "thinking_budget", "input_text", "properties", "reasoning", "",
    ]  # fmt: skip
    return {rng.choice(keys): _junk(rng, depth + 1) for _ in range(rng.randrange(4))}


class _Fuzz:
    """Damaged requests to one server."""

    def __init__(self, server: Server, fields: Mapping[str, list[str]], seed: int):
        self.server, self.rng, self._fields = server, random.Random(seed), fields
        self.statuses: collections.Counter[int] = collections.Counter()
        self.problems: list[str] = []
        self._url = httpx.URL(server.url)

    async def run(self, count: int) -> None:
        """Sends `count` requests."""
        gate = asyncio.Semaphore(16)
        async with load.client(self.server.url, timeout=120) as http:

            async def one() -> None:
                async with gate:
                    kind = self.rng.random()
                    await (self._fields_of(http) if kind < 0.7 else self._bytes(http) if kind < 0.93 else self._raw())

            await asyncio.gather(*(one() for _ in range(count)))

    async def _fields_of(self, http: httpx.AsyncClient) -> None:
        """Random values in random fields."""
        rng = self.rng
        path = rng.choice([*_PATHS, *_PATHS, "/tokenize", "/detokenize", "/v1/chat/completions/control"])
        body, names = _valid(path), self._fields.get(path) or ["prompt", "tokens", "id", "action"]
        for _ in range(rng.choice([1, 1, 2, 4])):
            body[rng.choice([*names, *body])] = _junk(rng)
        await self._send(http, "POST", path, json.dumps(body).encode())

    async def _bytes(self, http: httpx.AsyncClient) -> None:
        """Damaged bodies, other paths, methods and headers."""
        rng, path = self.rng, self.rng.choice(_PATHS)
        data = bytearray(json.dumps(_valid(path)).encode())
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        kind = rng.random()
        if kind < 0.5:
            await self._send(http, "POST", path, bytes(data))
        elif kind < 0.6:
            await self._send(http, "POST", path, rng.choice([b"", b"null", b"[]", b"[" * 100_000, b'{"a":' * 5000]))
        elif kind < 0.8:
            method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
            other = rng.choice(["/", "/health", "/metrics", "/v1/models/%00", "/v1/models/../x", "//", "/é", *_PATHS])
            await self._send(http, method, other, bytes(data) if rng.random() < 0.5 else b"")
        else:
            headers = {
                rng.choice(["authorization", "x-request-id", "origin", "host", "content-type", "accept", "cookie"]):
                rng.choice(["", "\x7f", "é", "x" * 5000, "Bearer", "null", "[::1", "a:b:c", "text/xml"])
            }  # fmt: skip
            await self._send(http, "POST", path, json.dumps(_valid(path)).encode(), headers)

    async def _send(
        self, http: httpx.AsyncClient, method: str, path: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        what = f"{method} {path} {data[:300]!r} {headers or ''}"
        encoded = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        try:
            reply = await http.request(
                method, path, content=data, headers={b"content-type": b"application/json", **encoded}
            )
        except (httpx.InvalidURL, httpx.LocalProtocolError):
            return  # the client itself refuses to send it
        except httpx.HTTPError as error:
            self.problems.append(f"{error!r}: {what}")
            return
        self.statuses[reply.status_code] += 1
        if reply.status_code >= 500 and reply.status_code != 503:
            self.problems.append(f"{reply.status_code} {reply.text[:200]}: {what}")
        if 400 <= reply.status_code < 500 and method == "POST" and path in _PATHS:
            try:
                assert reply.json()["error"]["message"]
            except (ValueError, LookupError, TypeError, AssertionError):
                self.problems.append(f"{reply.status_code} without an error object, {reply.text[:100]!r}: {what}")

    async def _raw(self) -> None:
        """Damaged HTTP: half requests, several in a row, wrong lengths, chunks that are none, random bytes."""
        rng, data = self.rng, json.dumps(_valid(_CHAT)).encode()
        head = f"POST {_CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        right = head + b"Content-Length: %d\r\n\r\n" % len(data) + data
        sent = rng.choice([
            right[: rng.randrange(len(right))], right * 3, rng.randbytes(200), b"\r\n" * 50,
            head + b"Content-Length: -5\r\n\r\n" + data, head + b"Content-Length: 99999999999999999999\r\n\r\n" + data,
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + data, head + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(data), data),
            head + b"Content-Length: %d\r\n\r\n" % (len(data) + 50) + data,
            b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        ])  # fmt: skip
        reader, writer = await asyncio.open_connection(self._url.host, self._url.port)
        status = 0  # of no reply
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(sent)
            await writer.drain()
            reply = await asyncio.wait_for(reader.read(2000), 1 + rng.random())
            status = int(reply.split(b" ", 2)[1]) if reply.startswith(b"HTTP/1.1 ") else 0
        self.statuses[status] += 1
        if status >= 500 and status != 503:
            self.problems.append(f"{status}: {sent[:300]!r}")
        writer.close()


def fuzz(server: Server, count: int, seed: int) -> dict[str, Any]:
    """Sends `count` damaged requests of our own."""
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False)
    paths = document.json()["paths"] if document.status_code == 200 else {}
    fields = {path: _properties(paths[path]) for path in _PATHS if path in paths}
    before, fuzzing = server.memory(), _Fuzz(server, fields, seed)
    asyncio.run(fuzzing.run(count))
    return _report(server, fuzzing.statuses, fuzzing.problems, before)


def _properties(path: Mapping[str, Any]) -> list[str]:
    return list(path["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"])


def by_schemathesis(server: Server, count: int) -> dict[str, Any]:
    """Sends about `count` requests that schemathesis makes of the server's document: half of them valid by it."""
    import hypothesis
    import schemathesis

    warnings.simplefilter("ignore")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    statuses: collections.Counter[int] = collections.Counter()
    problems: list[str] = []
    before, modes = server.memory(), list(schemathesis.GenerationMode)
    each = max(count // (len(operations) * len(modes)), 1)
    settings = hypothesis.settings(
        max_examples=each, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck), derandomize=True,
    )  # fmt: skip
    for operation in operations:
        for mode in modes:

            def one(case: Any) -> None:
                reply = case.call(base_url=server.url, timeout=120)
                statuses[reply.status_code] += 1
                if reply.status_code >= 500 and reply.status_code != 503:
                    problems.append(f"{reply.status_code}: {case.method} {case.path} {case.body!r:.300}")

            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing is invalid for a route without fields
                settings(hypothesis.given(operation.as_strategy(generation_mode=mode))(one))()
    return _report(server, statuses, problems, before)


def _report(server: Server, statuses: Mapping[int, int], problems: list[str], before: int) -> dict[str, Any]:
    alive = server.process.poll() is None
    return {
        "requests": sum(statuses.values()), "statuses": {str(key): statuses[key] for key in sorted(statuses)},
        "problems": problems, "alive": alive, "traceback": "Traceback" in server.output(),
        "memory_before": before, "memory_after": server.memory() if alive else 0,
    }  # fmt: skip
