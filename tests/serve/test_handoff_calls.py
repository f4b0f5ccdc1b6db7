"""Hand-offs over real connections: a small server that asks a fake endpoint, or a second server of ours."""

import json

import httpx
import pytest

from s1jax.remote import client as client_lib
from s1jax.serve import handoff_config
from s1jax.serve.guards import Rules
from s1jax.serve.handoff import Handoff
from s1jax.serve.prices import Prices
from tests.remote.fake_server import Server, completion
from tests.serve import running
from tests.serve.test_app import CHAT, body, joined, streamed
from tests.serve.test_handoff import settings

KEYS = {"authorization": "Bearer k1"}, {"authorization": "Bearer k2"}


@pytest.fixture(scope="module")
def remote():
    with Server() as found:
        yield found


def make(folder, url, **changes):
    # Every answer is unsure: no log-probability is above 0.
    file = folder / "handoff.json"
    file.write_text(json.dumps(settings(url, logprob_below=1.0, default_consent="never", **changes)))
    return Handoff(handoff_config.load(str(file)), "")


@pytest.fixture(scope="module")
def handing(engine, about, remote, tmp_path_factory):
    """A server that hands everything off that consents, for at most 1 USD a day."""
    handoff = make(tmp_path_factory.mktemp("handing"), remote.url)
    with running.serve(
        lambda: engine, about, rules=Rules(("k1", "k2")), count=Prices().count, handoff=handoff
    ) as found:
        yield found


@pytest.fixture
def client(handing, remote, monkeypatch):
    monkeypatch.setattr(client_lib, "_WAIT", 0.01)
    remote.script, remote.requests = [], []
    with httpx.Client(base_url=handing.url, timeout=60, headers=KEYS[0]) as found:
        yield found


@pytest.fixture
def local(client):
    """The reply without a hand-off."""
    return client.post(CHAT, json=body()).json()


def test_without_consent_nothing_leaves(client, remote, local):
    assert local["handoff"]["reason"] == "consent" and not local["handoff"]["decided"] and remote.requests == []
    assert "cost" not in local["usage"]


def test_the_answer_is_the_remotes_and_the_thinking_stays(client, remote, local, handing):
    found = client.post(CHAT, json=body(handoff="auto"), headers={"x-request-id": "request"}).json()
    choice, before = found["choices"][0], local["choices"][0]["message"]
    assert choice["message"]["content"] == "42" and choice["message"]["reasoning"] == before["reasoning"]
    assert (found["model"], found["handoff"]["decided"], choice["finish_reason"]) == ("big-2026", True, "stop")
    assert found["handoff"]["local_answer"] == before["content"]
    assert found["usage"]["cost"] == found["handoff"]["cost"] == pytest.approx(59e-6)
    assert found["usage"]["cost_details"]["remote_cost"] == found["usage"]["cost"]
    assert remote.requests[0][2]["messages"] == [{"role": "user", "content": body()["messages"][0]["content"]}]
    assert handing.log[-1]["handoff"] == "unsure" and handing.log[-1]["handoff_cost"] == pytest.approx(59e-6)
    logged = json.dumps({k: v for k, v in handing.log[-1].items() if isinstance(v, str)})
    assert "42" not in logged.replace(found["id"], "")  # an id is random and may have these digits
    lines = client.get("/metrics").text.splitlines()
    assert any(line.startswith('s1jax:handoffs_total{reason="unsure"}') for line in lines)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_other_apis_hand_off_as_well(client, path):
    own = {"input": "Hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "Hi"}]}
    most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    found = client.post(path, json={**own, most: 60, "handoff": "auto", "model": "tiny"}).json()
    assert found["model"] == "big-2026" and found["handoff"]["decided"] and '"42"' in json.dumps(found)


def test_a_stream_thinks_here_and_answers_there(client, remote, local):
    chunks = streamed(client, body(handoff="auto", stream_options={"include_usage": True}))
    assert joined(chunks, "reasoning") == local["choices"][0]["message"]["reasoning"]
    assert joined(chunks, "content") == "42"
    last, usage = chunks[-2:]
    assert last["model"] == "big-2026" and last["handoff"]["decided"]
    assert usage["usage"]["cost"] == pytest.approx(59e-6)


def test_nothing_of_the_answer_is_sent_before_the_decision(client, remote, local):
    """The stream's content is compared at the moment when the remote is asked."""
    seen, at_request = [], []

    def answer(_):
        at_request.append(list(seen))
        return 200, completion(), {}

    remote.script = [answer]
    with client.stream("POST", CHAT, json=body(handoff="auto", stream=True)) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                seen.append(json.loads(line[6:]))
    assert joined(at_request[0], "content") == "" and joined(seen, "content") == "42"


@pytest.mark.parametrize("stream", [False, True])
def test_if_the_remote_fails_the_local_answer_stands(client, remote, local, stream):
    remote.script = [(500, b"", {})] * 2
    if stream:
        chunks = streamed(client, body(handoff="auto"))
        content, last = joined(chunks, "content"), chunks[-1]
    else:
        last = client.post(CHAT, json=body(handoff="auto")).json()
        content = last["choices"][0]["message"]["content"]
    assert content == local["choices"][0]["message"]["content"] and last["model"] == "tiny"
    assert last["handoff"]["reason"] == "failed" and "answered 500" in last["handoff"]["message"]
    remote.script = []
    assert client.post(CHAT, json=body(handoff="auto")).json()["handoff"]["decided"]  # closes the breaker


def test_a_request_may_be_asked_first(client, remote, local):
    asked = client.post(CHAT, json=body(handoff="ask")).json()
    offer = asked["handoff"]["offer"]
    assert asked["choices"][0]["message"]["content"] == local["choices"][0]["message"]["content"]
    assert remote.requests == [] and offer["model"] == "big" and 0 < offer["expected_cost"] < offer["most_cost"]
    assert client.post("/v1/handoffs", json={"offer": offer["id"]}, headers=KEYS[1]).status_code == 404
    found = client.post("/v1/handoffs", json={"offer": offer["id"]}).json()
    assert found["choices"][0]["message"]["content"] == "42" and found["usage"]["cost"] == pytest.approx(59e-6)
    gone = client.post("/v1/handoffs", json={"offer": offer["id"]})
    assert gone.status_code == 404 and gone.json()["error"]["param"] == "offer"
    assert client.post("/v1/handoffs", json={"offers": "x"}).status_code == 400


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_cost": 0.0001}, "max_cost"),
        ({"messages": [{"role": "user", "content": "I am jo@mail.example.org"}]}, "blocked"),
    ],
)
def test_what_may_not_leave_stays(client, remote, fields, reason):
    found = client.post(CHAT, json=body(handoff="auto", **fields)).json()
    assert found["handoff"]["reason"] == reason and remote.requests == [] and found["model"] == "tiny"


@pytest.mark.parametrize(
    "fields", [{"n": 2, "temperature": 1}, {"logprobs": True}, {"handoff": "always"}, {"max_cost": -1}]
)
def test_a_hand_off_that_cannot_be_is_a_400(client, remote, fields):
    refused = client.post(CHAT, json=body(**{"handoff": "auto", **fields}))
    assert refused.status_code == 400 and refused.json()["error"]["param"] in ("handoff", "max_cost")
    assert remote.requests == []


def test_a_server_without_a_remote_says_so(server):
    refused = httpx.post(server.url + CHAT, json=body(handoff="auto"), timeout=60)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "handoff"
    found = httpx.post(server.url + CHAT, json=body(handoff="never"), timeout=60)
    assert found.status_code == 200 and "handoff" not in found.json()


def test_a_second_server_of_ours_can_be_the_remote(server, engine, about, tmp_path):
    larger = {"temperature": 0, "max_thinking_tokens": 60, "max_answer_tokens": 12}
    handoff = make(tmp_path, server.url + "/v1", model="tiny", body=larger, max_tokens=200)
    asked = httpx.post(server.url + CHAT, json=body(max_thinking_tokens=60), timeout=60).json()
    with running.serve(lambda: engine, about, handoff=handoff) as small:
        found = httpx.post(small.url + CHAT, json=body(handoff="auto"), timeout=60).json()
    assert found["handoff"]["decided"] and found["model"] == "tiny", found["handoff"]
    assert found["choices"][0]["message"]["content"] == asked["choices"][0]["message"]["content"]
    assert found["handoff"]["remote_usage"]["completion_tokens"] == asked["usage"]["completion_tokens"]
