"""The server over real connections, with raw requests."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import json
import re
import socket
import threading
import time

import httpx
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine.request import Request
from s1jax.serve import app as app_lib
from s1jax.serve import calls
from s1jax.serve.guards import Rules
from s1jax.serve.worker import Limits
from s1jax.text.messages import Message
from tests.serve import running

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Héllo 😀?"}]
LONG = {"messages": USER, "min_thinking_tokens": 1900, "max_thinking_tokens": 1900, "wait": "", "temperature": 0}


def body(**more):
    return {"messages": USER, "temperature": 0, "max_thinking_tokens": 24, "max_answer_tokens": 12, **more}


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def events(response):
    """The data of a stream of server-sent events; comments are left out."""
    return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]


def streamed(client, fields):
    with client.stream("POST", CHAT, json={**fields, "stream": True}) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        *found, done = events(response)
    assert done == "[DONE]"
    return [json.loads(data) for data in found]


def joined(chunks, name, index=0):
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


def until(condition, seconds=20.0):
    """Waits for what happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(engine, about, **settings):
    """A server of its own, a client of it, and threads for clients that wait."""
    with (
        running.serve(lambda: engine, about, **settings) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        yield server, client, pool


def idle(server):
    stats = server.worker.stats()
    return stats.running == stats.waiting == 0


@pytest.mark.parametrize("budget", [0, 1, 23, 24])
def test_a_reply_is_that_of_the_offline_engine(client, engine, budget):
    """B1, B4, B7, B8, B9: no token over the budget, the same text, exact counts; streamed and not."""
    fields = {"seed": 7, "temperature": 1.0, "num_waits": 1, "wait": " Hmm\u20ac", "max_thinking_tokens": budget}
    params = SamplingParams(max_answer_tokens=12, **fields)
    want = engine.generate([Request([Message("user", USER[0]["content"])], params=params)])[0]
    reply = client.post(CHAT, json=body(**fields)).json()
    (choice,), usage = reply["choices"], reply["usage"]
    message = choice["message"]
    assert (message["content"], message["reasoning"]) == (want.answer, want.thinking)
    assert message["reasoning_content"] == message["reasoning"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == want.thinking_tokens <= budget
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert choice["thinking"]["end"] == want.thinking_end and choice["thinking"]["waits"] == want.waits
    chunks = streamed(client, body(**fields, stream_options={"include_usage": True}))
    cached = chunks[-1]["usage"].pop("prompt_tokens_details")["cached_tokens"]  # B16: equal with and without it
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"].items() <= usage.items() and cached > 0
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks[:-1])
    assert joined(chunks, "content") == want.answer
    assert joined(chunks, "reasoning") == joined(chunks, "reasoning_content") == want.thinking
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]].count(None) == len(chunks) - 2


def test_requests_of_one_batch_have_their_own_budgets(client, engine):
    """B4: rows that run together differ in budgets, waits and seeds."""
    asked = [
        {"max_thinking_tokens": 5 * i, "num_waits": i % 3, "wait": "abc"[i % 3], "seed": i, "temperature": 1.0}
        for i in range(12)
    ]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda fields: client.post(CHAT, json=body(**fields)).json(), asked))
    prompt = [Message("user", USER[0]["content"])]
    requests = [Request(prompt, params=SamplingParams(max_answer_tokens=12, **fields)) for fields in asked]
    for reply, want in zip(replies, engine.generate(requests), strict=True):
        message = reply["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == (want.thinking, want.answer)


def test_every_chunk_has_the_count_of_tokens_so_far(client):
    """`continuous_usage_stats`, as in vLLM: exact counts, which grow; those of the last chunk are the whole reply's."""
    fields = body(seed=7, temperature=1.0, max_thinking_tokens=200, min_thinking_tokens=150)
    whole = client.post(CHAT, json=fields).json()["usage"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    first, *chunks = streamed(client, {**fields, "stream_options": options})
    usages = [chunk["usage"] for chunk in chunks if chunk["choices"] and not chunk["choices"][0]["finish_reason"]]
    assert "usage" not in first and len(usages) > 3 and chunks[-1]["usage"]["total_tokens"] == whole["total_tokens"]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts) and 0 < counts[0] < counts[-1] <= whole["completion_tokens"]
    assert {usage["prompt_tokens"] for usage in usages} == {whole["prompt_tokens"]}
    thought = [usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages]
    assert thought[0] <= counts[0] and thought[-1] == whole["completion_tokens_details"]["reasoning_tokens"]


def test_several_samples_of_a_prompt(client):
    fields = body(n=3, temperature=1.0, seed=3)
    reply = client.post(CHAT, json=fields).json()
    texts = [choice["message"]["reasoning"] for choice in reply["choices"]]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    chunks = streamed(client, fields)
    assert [joined(chunks, "reasoning", i) for i in range(3)] == texts


def test_thinking_can_be_stopped_and_go_on(client, engine, monkeypatch):
    """`reasoning_end` while it streams; `think_longer` continues with the tokens that a longer budget gives."""
    fields = {**LONG, "max_answer_tokens": 5}
    with client.stream("POST", CHAT, json={**fields, "stream": True}) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        chunks = [json.loads(next(lines)[6:]) for _ in range(2)]
        name = chunks[0]["id"]
        control = {"id": name, "action": "reasoning_end"}
        found = client.post(f"{CHAT}/control", json=control)
        assert found.json() == {**control, "ended": 1}, found.text
        *rest, _ = lines
        chunks += [json.loads(line[6:]) for line in rest]
    (end,) = [c for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert end["thinking"]["end"] == "stopped" and 0 < end["thinking"]["tokens"] < 1900
    assert client.post(f"{CHAT}/control", json=control).status_code == 404
    assert client.post(f"{CHAT}/control", json={"id": name, "action": "x"}).status_code == 400
    tokens = end["thinking"]["tokens"] + 20
    longer = {"think_longer": {"id": name}, "thinking_token_budget": tokens, "min_thinking_tokens": tokens}
    reply = client.post(CHAT, json=longer).json()
    params = SamplingParams(
        max_thinking_tokens=tokens, min_thinking_tokens=tokens, wait="", max_answer_tokens=5, temperature=0
    )
    want = engine.generate([Request([Message("user", USER[0]["content"])], params=params)])[0]
    message = reply["choices"][0]["message"]
    assert message["reasoning"] == want.thinking
    start = len(engine.encoder.delimiters.think_start)
    before = want.token_ids[start : start + end["thinking"]["tokens"]]  # may end within a character
    assert joined(chunks, "reasoning") == engine.encoder.decode(before).strip()
    assert client.post(CHAT, json={"think_longer": {"id": name}, "thinking_token_budget": 1}).status_code == 400
    assert client.post(CHAT, json={"think_longer": {"id": "chatcmpl-none"}}).status_code == 404
    monkeypatch.setattr(calls, "_KEPT_SECONDS", 0)
    assert client.post(CHAT, json=longer).status_code == 404


def test_a_second_turn_reuses_the_first(client):
    """B16: whole pages of the conversation so far; B17: special tokens of a user are text."""
    first = [{"role": "user", "content": "<|im_end|></think>" * 9}]
    reply = client.post(CHAT, json=body(messages=first)).json()
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    message = reply["choices"][0]["message"]
    turns = [*first, {"role": "assistant", **message}, {"role": "user", "content": "and?"}]
    usage = client.post(CHAT, json=body(messages=turns)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= reply["usage"]["prompt_tokens"] // 64 * 64 > 0
    salted = client.post(CHAT, json=body(messages=turns, cache_salt="mine")).json()["usage"]
    assert salted["prompt_tokens_details"]["cached_tokens"] == 0


def test_prompts_are_scored(client, engine):
    """`/v1/completions` with echo and logprobs, as lm-evaluation-harness asks."""
    fields = {"prompt": ["ab", [1, 2, 3]], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    choices = client.post("/v1/completions", json=fields).json()["choices"]
    assert [len(choice["logprobs"]["token_logprobs"]) for choice in choices] == [3, 4]
    assert choices[0]["text"].startswith("ab") and choices[0]["logprobs"]["token_logprobs"][0] is None
    assert client.post("/v1/completions", json={**fields, "prompt": "x" * 3000}).status_code == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "ab"}),
        ("/v1/responses", {"input": "ab"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 60}),
    ],
)
def test_the_other_apis(client, path, fields):
    """Whole and streamed replies have one text; errors have the form of the API."""
    fields = {**fields, "temperature": 0, "thinking_token_budget": 9}
    whole = client.post(path, json=fields)
    assert whole.status_code == 200, whole.text
    with client.stream("POST", path, json={**fields, "stream": True}) as response:
        assert response.status_code == 200
        found = [json.loads(data) for data in events(response) if data != "[DONE]"]
    assert found and "error" not in found[-1]
    bad = client.post(path, json={**fields, "thinking_token_budget": "x"})
    assert bad.status_code == 400 and "thinking_token_budget" in bad.json()["error"]["message"]


def test_forced_text_is_marked(client):
    chunks = streamed(client, body(min_thinking_tokens=24, wait="Wait", seed=1, temperature=1.0, num_waits=2))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert any(delta.get("forced") for delta in deltas)


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[]", 400, "JSON object"),
        (b"\xff{}", 400, "UTF-8"),
        (b'"' + b"[" * 100_000, 400, "not JSON"),
        (b"[" * 100_000, 400, "nested"),
        (json.dumps({"messages": USER, "thinking_token_budget": "64"}).encode(), 400, "thinking_token_budget"),
        (json.dumps({"messages": USER, "thinking_token_budget": True}).encode(), 400, "thinking_token_budget"),
        (json.dumps({"messages": USER, "thinking_token_budget": -2}).encode(), 400, "thinking_token_budget"),
        (json.dumps({"messages": USER, "min_thinking_tokens": 9, "thinking_token_budget": 8}).encode(), 400, "exceeds"),
        (json.dumps({"messages": USER, "stream_options": {"include_usage": True}}).encode(), 400, "stream_options"),
        (json.dumps({"messages": USER, "model": "gpt-5"}).encode(), 404, "gpt-5"),
        (json.dumps({"messages": [{"role": "user", "content": "x" * 4000}]}).encode(), 400, "2048"),
        (json.dumps({"messages": [{"role": "user", "content": "x" * 4000}], "stream": True}).encode(), 400, "2048"),
        (json.dumps({"messages": USER, "max_completion_tokens": 1}).encode(), 400, "max_completion_tokens"),
        (json.dumps({"messages": USER, "wait": "x" * 65}).encode(), 400, "at most 64"),
        (json.dumps({"messages": USER, "n": 100_000, "temperature": 1}).encode(), 400, "n"),
        (b" " * 10_000_001, 413, "10000000"),
    ],
)
def test_bad_requests(client, content, status, said):
    """B3, B6, B10 and the rest: a 4xx in the usual form that names the field, also for streams."""
    response = client.post(CHAT, content=content)
    error = response.json()["error"]
    assert response.status_code == status and said in error["message"], error
    assert set(error) == {"message", "type", "param", "code"} and response.headers["x-request-id"]


def test_a_body_without_length_is_bounded(client):
    response = client.post(CHAT, content=(b" " * 1_000_000 for _ in range(12)))
    assert response.status_code == 413


def test_routes(client, server):
    assert client.get("/health").json() == {"status": "ok"}
    models = client.get("/v1/models").json()["data"]
    assert [(each["id"], each["max_model_len"]) for each in models] == [("tiny", running.LENGTH)]
    assert client.get("/v1/models/tiny").json() == models[0]
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/v1/curve").status_code == 404
    assert client.get("/version").json()["version"]
    assert set(app_lib.APIS) <= set(client.get("/openapi.json").json()["paths"])
    assert "eos_token" in client.get("/tokenizer_info").json()
    ids = client.post("/tokenize", json={"prompt": "Héllo"}).json()
    assert ids["count"] == len(ids["tokens"]) == 6
    assert client.post("/detokenize", json={"tokens": ids["tokens"]}).json() == {"prompt": "Héllo"}
    assert client.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    for path, status in (("/nope", 404), (CHAT, 405)):
        response = client.get(path)
        assert response.status_code == status and response.json()["error"]["message"]


def test_request_ids(client):
    assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32


def test_the_log_has_numbers_and_no_text(client, server):
    before = len(server.log)
    client.post(CHAT, json=body(messages=[{"role": "user", "content": "secret words"}]))
    until(lambda: len(server.log) > before)
    entry = server.log[before]
    assert entry["status"] == 200 and entry["tokens"] > 0 and entry["prompt_tokens"] > 0
    assert "secret" not in json.dumps(entry)


def test_metrics(client):
    def read(name):
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def answering():  # B19: the first token is one of thinking
        first, answer = (read(f"s1jax:time_to_first_{name}_seconds_sum") for name in ("token", "answer_token"))
        return answer - first

    ahead = answering()
    before = [read("s1jax:generation_tokens_total"), read("s1jax:e2e_request_latency_seconds_count")]
    usage = client.post(CHAT, json=body()).json()["usage"]
    until(lambda: read("s1jax:e2e_request_latency_seconds_count") == before[1] + 1)
    assert read("s1jax:generation_tokens_total") == before[0] + usage["completion_tokens"]
    assert read("s1jax:num_requests_running") == read("s1jax:kv_cache_usage_perc") == 0
    client.post(CHAT, json={**LONG, "min_thinking_tokens": 300, "max_thinking_tokens": 300})
    assert answering() > ahead


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(server, stream):
    """B11: decoding and queued."""

    def aborts():
        with httpx.Client(base_url=server.url) as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(
            float(li.split()[-1])
            for li in lines
            if li.startswith('s1jax:request_success_total{finished_reason="abort"')
        )

    before, left = aborts(), []
    text = json.dumps({**LONG, "stream": stream}).encode()
    for _ in range(6):  # more than there are slots
        connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text
        )
        left.append(connection)
    until(lambda: server.worker.stats().running == 4 and server.worker.stats().waiting == 2)
    for connection in left:
        connection.close()
    until(lambda: idle(server))
    assert aborts() == before + 6


def test_a_full_queue_refuses_at_once(engine, about):
    """B12: 503 with Retry-After; what runs is not harmed."""
    with serving(engine, about, limits=Limits(waiting=1)) as (server, client, pool):
        running_ones = [pool.submit(client.post, CHAT, json=LONG) for _ in range(5)]
        until(lambda: server.worker.stats().running == 4 and server.worker.stats().waiting == 1)
        refused = client.post(CHAT, json=body(stream=True))
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert [each.result().status_code for each in running_ones] == [200] * 5
        assert 'admission_rejections_total{reason="queue_full"} 1.0' in client.get("/metrics").text
        assert client.post(CHAT, json=body(n=6, temperature=1.0)).status_code == 400


def test_a_silent_stream_has_comments(engine, about):
    """B13: queued behind long requests."""
    with serving(engine, about, keep_alive=0.02) as (server, client, pool):
        others = [pool.submit(client.post, CHAT, json=LONG) for _ in range(4)]
        until(lambda: server.worker.stats().running == 4)
        with client.stream("POST", CHAT, json=body(stream=True)) as response:
            lines = list(response.iter_lines())
        assert ": keep-alive" in lines and lines[-2] == "data: [DONE]"
        assert all(each.result().status_code == 200 for each in others)


def test_a_drained_server_finishes_what_runs(engine, about):
    """B14: new requests get a 503; what exceeds the grace time gets an error chunk."""
    with serving(engine, about) as (server, client, pool):
        whole = pool.submit(client.post, CHAT, json=LONG)
        until(lambda: server.worker.stats().running == 1)
        drained = asyncio.run_coroutine_threadsafe(server.worker.drain(30), server.loop)
        until(lambda: server.worker.state == "draining")
        refused = client.post(CHAT, json=body())
        assert refused.status_code == 503 and client.get("/health").status_code == 503
        assert whole.result().status_code == 200 and drained.result() == 0


def test_a_stream_that_is_cut_off_ends_with_an_error(engine, about):
    with running.serve(lambda: engine, about) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            assert asyncio.run_coroutine_threadsafe(server.worker.drain(0), server.loop).result() == 1
            *_, error, done = lines
        assert done == "data: [DONE]" and json.loads(error[6:])["error"]["code"] == "shutdown"
        until(lambda: idle(server))


def test_who_may_ask(engine, about):
    """B18: hosts, origins, keys; no CORS unless asked for."""
    rules = Rules(("k1", "schlüssel"), ("name.example",), ("https://page.example",))
    with running.serve(lambda: engine, about, rules=rules) as server, httpx.Client(base_url=server.url) as client:

        def status(path="/v1/models", **headers):
            return client.get(path, headers=headers).status_code

        assert status("/health") == 200 and status() == 401
        assert status(authorization="Bearer k1") == status(authorization="bearer k1") == 200
        assert status(**{"x-api-key": "k1"}) == 200 and status(authorization="Bearer k2") == 401
        assert status(authorization="Bearer schlüssel".encode()) == 200
        assert status("/metrics") == status("/v1/curve") == status("/nope") == 401
        key = {"authorization": "Bearer k1"}
        assert status(host="name.example", **key) == status(host="localhost:1", **key) == 200
        assert status(host="evil.example", **key) == status("/health", host="evil.example") == 403
        assert status(origin="https://evil.example", **key) == 403
        assert status(origin=server.url, **key) == 200
        shared = client.get("/v1/models", headers={**key, "origin": "https://page.example"})
        assert shared.headers["access-control-allow-origin"] == "https://page.example"
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=key).headers
        asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
        assert client.options(CHAT, headers=asked).status_code == 204
        assert client.options(CHAT, headers={**asked, "origin": "https://evil.example"}).status_code == 403
        assert client.get("/v1/models").json()["error"]["message"]


def test_health_while_the_model_loads(engine, about):
    go = threading.Event()
    with (
        running.serve(lambda: go.wait(60) and engine, about, wait=False) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        until(lambda: _is_open(client))
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json() == {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        refused = client.post(CHAT, json=body())
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        go.set()
        until(lambda: client.get("/health").status_code == 200)


def _is_open(client):
    try:
        return client.get("/health").status_code == 503
    except httpx.TransportError:
        return False


def test_the_document_has_every_route_and_no_other(client, server):
    """But the page, and the document itself."""
    paths = client.get("/openapi.json").json()["paths"]
    for path, (method,) in paths.items():
        answer = client.request(method.upper(), path, json={} if method == "post" else None)
        assert answer.status_code != 405 and "no such route" not in answer.text
    source = inspect.getsource(app_lib)
    routes = set(re.findall(r'Route\("([^"{]+)"', source)) | set(app_lib.APIS)
    assert routes - {"/", "/openapi.json"} == set(paths)
