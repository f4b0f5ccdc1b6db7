"""Requests that are made to hurt: they are refused soon, and change nothing for others."""

import asyncio
import json
import socket

import httpx
import pytest

from s1jax.serve import reader
from s1jax.serve.guards import Rules
from s1jax.serve.reader import ApiError
from s1jax.serve.ticket import Unavailable
from tests.serve import running
from tests.serve.test_app import CHAT, LONG, USER, body, idle, until
from tests.serve.test_worker import encoded, run


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


@pytest.mark.parametrize("origin", ["http://[", "http://\xff", "null", "//[x]:y", "http://evil.example"])
def test_a_bad_origin_is_refused(client, origin):
    response = client.get("/health", headers={"origin": origin.encode("latin-1")})
    assert response.status_code == 403 and response.json()["error"]["code"] == "origin_not_allowed"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({f"zq{i}xx": 1 for i in range(101)}, "more than 100 fields"),
        ({"messages": [{"role": "user", "content": "a", f"zq{i}xx": 1} for i in range(101)]}, "more than 100 fields"),
        ({"messages": [{"role": "user", "content": "a"}] * 20_000}, "more than 20000 objects"),
        ({"messages": [{"role": "user", "content": "ab " * 30_000}]}, "90000 characters, but the context holds 2048"),
        ({"wait": "ab " * 300_000}, "wait has 900000 characters"),
        ({"stop": ["a"] * 65}, "stop"),
    ],
)
def test_what_would_take_long_is_refused_by_its_size(client, fields, said):
    response = client.post(CHAT, json={"messages": USER, **fields})
    assert response.status_code == 400 and said in response.json()["error"]["message"], response.text


def test_an_unknown_field_of_every_message_is_one_name(client):
    turns = [{"role": "user", "content": "a", "zqxx": i} for i in range(30)]
    response = client.post(CHAT, json=body(messages=turns))
    assert response.status_code == 200 and response.headers["x-s1jax-ignored"] == "messages[].zqxx"


def test_a_key_that_comes_twice_is_found_in_one_pass():
    """100,000 keys, the last one twice: counting each of them would take an hour."""
    text = json.dumps({f"k{i}": 1 for i in range(100_000)})[:-1] + ', "k99999": 2}'
    with pytest.raises(ApiError, match="k99999 twice"):
        reader.loads(text.encode())


@pytest.mark.parametrize("name", ["messages", "stop", "wait", "metadata", "model", "thinking", "tools", "n"])
@pytest.mark.parametrize("depth", [300, 900, 3000])
def test_deep_values_are_a_4xx(client, name, depth):
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        content = json.dumps({"messages": USER, "max_completion_tokens": 30})[:-1] + f', "{name}": {text}}}'
        content = content.replace('"messages": [{', '"x": [{', 1) if name == "messages" else content
        response = client.post(CHAT, content=content)
        accepted = (200, 400) if name in ("metadata", "thinking") else (400,)  # within them all is ignored
        assert response.status_code in accepted, response.text


def test_a_reply_of_another_key_does_not_exist(engine, about):
    """Neither `control` nor `think_longer` nor the cache tells of it, whether it runs, is finished or has failed."""
    with running.serve(lambda: engine, about, rules=Rules(("one", "two"))) as server:
        clients = [
            httpx.Client(base_url=server.url, timeout=60, headers={"authorization": f"Bearer {key}"})
            for key in ("one", "two")
        ]
        one, two = clients

        def control(client, name):
            return client.post(f"{CHAT}/control", json={"id": name, "action": "reasoning_end"}).status_code

        def longer(client, name):
            return client.post(CHAT, json={"think_longer": {"id": name}, "thinking_token_budget": 60}).status_code

        with one.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
            lines = response.iter_lines()
            name = json.loads(next(lines)[6:])["id"]
            assert control(two, name) == longer(two, name) == longer(one, name) == 404
            assert control(one, name) == 200
        until(lambda: idle(server))
        turn = [{"role": "user", "content": "x" * 200}]
        done = one.post(CHAT, json=body(messages=turn, min_thinking_tokens=24, wait="")).json()
        assert control(two, done["id"]) == longer(two, done["id"]) == control(one, done["id"]) == 404
        assert longer(one, done["id"]) == 200
        cached = [
            each.post(CHAT, json=body(messages=turn)).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            for each in (two, one)
        ]
        assert cached[0] == 0 < cached[1]
        for each in clients:
            each.close()


def test_a_control_that_the_engine_never_sees_gets_an_error(engine):
    """A request that neither ends nor fails must be impossible."""

    async def use(worker):
        ticket = await worker.submit(encoded(engine, max_thinking_tokens=1900, min_thinking_tokens=1900, wait=""))
        worker._commands.put(lambda scheduler: 1 / 0)
        with pytest.raises(Unavailable, match="failed"):
            await asyncio.wait_for(worker.end_thinking(ticket), 20)

    run(engine, use)


def test_half_bodies_and_pipelines_harm_nobody(client, server):
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    text = json.dumps(body()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    for sent in (head, head + text[:5], head[:20], b"\x16\x03\x01\x02\x00\x01", head + text + head + text[:9]):
        with socket.create_connection(address) as connection:
            connection.sendall(sent)
    with socket.create_connection(address) as connection:
        connection.sendall((head + text) * 3)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 3:
            more = connection.recv(65536)
            assert more, found
            found += more
    until(lambda: idle(server))
    assert client.post(CHAT, json=body()).status_code == 200
