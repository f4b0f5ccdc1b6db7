"""The client of OpenAI-compatible endpoints against a server that misbehaves."""

import asyncio
import email.utils
import time

import pytest

from s1jax.errors import UserError
from s1jax.remote import client as client_lib
from s1jax.remote import reply
from s1jax.remote.client import Client, Endpoint, RemoteError
from tests.remote.fake_server import Server, completion, half, hang_up, slow

KEY = "sk-secret-123"
MESSAGES = [{"role": "user", "content": "What is 12 plus 30?"}]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(client_lib, "_WAIT", 0.01)
    with Server() as found:
        yield found


def ask(server, times=1, **settings):
    """Asks one client `times` times, one after the other; returns completions and errors."""

    async def run():
        async with Client(Endpoint(server.url, "big", key=KEY, **settings)) as client:
            found = []
            for _ in range(times):
                try:
                    found.append(await client.chat(MESSAGES, max_tokens=64))
                except RemoteError as error:
                    found.append(error)
            return found

    return asyncio.run(run())


def test_a_completion_has_all_that_the_endpoint_says(server):
    server.script = [(200, completion(reasoning="12 + 30"), {"x-litellm-response-cost": "0.25"})]
    (found,) = ask(server, body={"provider": {"data_collection": "deny"}})
    assert (found.content, found.reasoning, found.model, found.id) == ("42", "12 + 30", "big-2026", "chatcmpl-1")
    assert (found.finish_reason, found.attempts, found.lost) == ("stop", 1, 0) and found.seconds > 0
    assert found.usage == reply.Usage(9, 5, 0, 3, 0.25)
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "provider": {"data_collection": "deny"}, "max_completion_tokens": 64, "model": "big", "messages": MESSAGES,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "42", "reasoning_content": "r", "reasoning": "other"}, ("42", "r")),
        ({"content": "42", "reasoning": "r"}, ("42", "r")),
        ({"content": "42", "thinking": "r"}, ("42", "r")),
        ({"content": "42", "reasoning": {"content": "r"}}, ("42", "r")),
        ({"content": "42", "reasoning_details": [{"type": "x", "text": "a"}, {"summary": "b"}]}, ("42", "ab")),
        ({"content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "42"}]}, ("42", "r")),
        ({"content": "<think>\nr\n</think>\n\n42"}, ("42", "r")),
        ({"content": "r\n</think>\n\n42"}, ("42", "r")),
        ({"content": "<think>\ncut in the mid"}, ("", "cut in the mid")),
        ({"content": "</think>42"}, ("</think>42", "")),
        ({"content": "<|begin_of_thought|>r<|end_of_thought|>\n<|begin_of_solution|>4<|end_of_solution|>"}, ("4", "r")),
        ({"content": "\u25c1think\u25b7r\u25c1/think\u25b742"}, ("42", "r")),
        ({"content": None, "reasoning_content": "r"}, ("", "r")),
        ({"content": "no <think>r</think>"}, ("no <think>r</think>", "")),
        ({"content": "42", "reasoning_content": None}, ("42", "")),
    ],
)  # fmt: skip
def test_thinking_is_found_under_every_name(message, expected):
    found = reply.parse({"choices": [{"message": message}]}, {})
    assert (found.content, found.reasoning) == expected and found.usage is None


@pytest.mark.parametrize("step", [(500, b"oops", {}), (503, {"error": "busy"}, {}), (429, {}, {}), hang_up, half])
def test_one_failure_is_repeated_once(server, step):
    server.script = [step]
    (found,) = ask(server)
    assert found.content == "42" and found.attempts == len(server.requests) == 2
    assert found.lost == (step in (hang_up, half))  # its tokens may have been generated


@pytest.mark.parametrize(
    ("step", "kind", "attempts", "lost"),
    [
        ((500, b"<html>", {}), "server", 2, 0),
        ((429, {"error": {"message": "slow down", "type": "requests"}}, {}), "busy", 2, 0),
        (hang_up, "connection", 2, 2),
        ((429, {"error": {"message": "pay", "type": "t", "code": "insufficient_quota"}}, {}), "quota", 1, 0),
        ((429, {"error": {"message": "pay", "type": "insufficient_quota", "code": "c"}}, {}), "quota", 1, 0),
        ((402, {"error": {"message": "Insufficient credits"}}, {}), "quota", 1, 0),
        ((401, {"error": "Unauthorized"}, {}), "key", 1, 0),
        ((403, {}, {}), "key", 1, 0),
        ((400, {"error": {"message": "no such field"}}, {}), "request", 1, 0),
        ((302, {}, {"location": "http://127.0.0.1:1/"}), "request", 1, 0),
        ((200, b"not json", {}), "answer", 1, 1),
        ((200, b"[" * 100_000, {}), "answer", 1, 1),
        ((200, {"choices": []}, {}), "answer", 1, 1),
        ((200, {"error": {"message": "upstream"}}, {}), "server", 2, 0),
    ],
)
def test_every_failure_has_its_kind(server, step, kind, attempts, lost):
    server.script = [step, step]
    (error,) = ask(server)
    assert isinstance(error, RemoteError) and error.kind == kind
    assert (error.attempts, error.lost, len(server.requests)) == (attempts, lost, attempts)


def test_an_endpoint_that_drips_is_given_up(server):
    server.script = [slow, slow]
    (error,) = ask(server, timeout=0.2, retries=0)
    assert (error.kind, error.lost) == ("timeout", 1)


def test_an_endpoint_that_is_not_there_is_not_billed(server):
    async def run():
        async with Client(Endpoint("http://127.0.0.1:1/v1", "big")) as client:
            await client.chat(MESSAGES)

    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        asyncio.run(run())
    assert (caught.value.kind, caught.value.attempts, caught.value.lost) == ("connection", 2, 0)


def test_429_pauses_all_requests_of_the_client(server):
    server.script = [(429, {}, {"retry-after": "0.2"})]

    async def run():
        async with Client(Endpoint(server.url, "big")) as client:
            first = asyncio.create_task(client.chat(MESSAGES))
            while not client._resume_at:
                await asyncio.sleep(0.005)
            await client.chat(MESSAGES)
            assert time.monotonic() >= client._resume_at
            await first

    asyncio.run(run())
    assert len(server.requests) == 3


def test_a_long_pause_fails_at_once_without_asking(server):
    server.script = [(429, {}, {"retry-after": "3600"})]
    first, second = ask(server, times=2)
    assert first.kind == second.kind == "busy" and first.retry_after == 3600 and 3500 < second.retry_after <= 3600
    assert (first.attempts, second.attempts, len(server.requests)) == (1, 0, 1)


def test_retry_after_is_seconds_milliseconds_or_a_date():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert client_lib.retry_after({"retry-after": "3"}) == 3
    assert client_lib.retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert 98 < client_lib.retry_after({"retry-after": date}) <= 100
    assert client_lib.retry_after({"retry-after": "-3"}) == 0
    assert client_lib.retry_after({"retry-after": "soon"}) is client_lib.retry_after({}) is None


def test_the_key_is_in_no_message(server):
    server.script = [(401, {"error": {"message": f"bad key\n{KEY}"}}, {})]
    (error,) = ask(server)
    assert "bad key [key]" in str(error) and KEY not in str(error)
    assert KEY not in repr(Endpoint(server.url, "big", key=KEY))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"base_url": "api.example.com/v1"}, "base_url is"),
        ({"base_url": "file:///etc"}, "base_url is"),
        ({"base_url": "http://[::1/v1"}, "base_url is"),
        ({"base_url": "http://localhost:80800/v1"}, "base_url is"),
        ({"base_url": "https://me:pw@example.com"}, "environment variable"),
        ({"base_url": "http://api.example.com/v1", "key": "k"}, "use https"),
        ({"model": ""}, "name the model"),
        ({"key": "k\n"}, "no HTTP header"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_a_bad_endpoint_is_refused(fields, says):
    with pytest.raises(UserError, match=says):
        Endpoint(**{"base_url": "https://api.example.com/v1", "model": "big"} | fields)
