"""Hand-offs to a fake endpoint: who is handed off, at what price, and what happens when it fails."""

import asyncio
import dataclasses
import hashlib
import json
import threading

import pytest

from s1jax.errors import UserError
from s1jax.remote import client as client_lib
from s1jax.remote import confidence
from s1jax.remote.confidence import Confidence
from s1jax.serve import handoff_config
from s1jax.serve.handoff import CircuitBreaker, Handoff, Question
from s1jax.text.messages import Message
from tests.remote.fake_server import Server, completion, hang_up

SURE, UNSURE = Confidence(-0.01, -0.1, -0.01), Confidence(-2.0, -4.0, -1.0)
ASKED = "What is 12 plus 30?"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(client_lib, "_WAIT", 0.01)
    with Server() as found:
        yield found


def settings(url="http://127.0.0.1:1/v1", **changes):
    given = {
        "base_url": url, "model": "big", "price": {"input": 1.0, "output": 10.0}, "max_tokens": 1000,
        "caps": {"request": 0.05, "day": 1.0}, "audit": "audit.jsonl", "consent": "auto", "default_consent": "auto",
        "logprob_below": -0.5,
    }  # fmt: skip
    return {name: value for name, value in (given | changes).items() if value is not None}


def load(folder, **changes):
    (folder / "handoff.json").write_text(json.dumps(settings(**changes)))
    return handoff_config.load(str(folder / "handoff.json"), "f00d")


def question(confidence=UNSURE, text=ASKED, **more):
    return Question([Message("user", text)], confidence, **more)


def decide(folder, *questions, together=False, **changes):
    """Returns the outcomes of questions, asked one after the other or all at once, and the day's spending."""

    async def run():
        handoff = Handoff(load(folder, **changes), "k")
        try:
            if together:
                return await asyncio.gather(*map(handoff.decide, questions)), handoff.spending.today()
            return [await handoff.decide(each) for each in questions], handoff.spending.today()
        finally:
            await handoff.close()

    return asyncio.run(run())


def audit(folder):
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def make_fit(folder, **changes):
    """Writes a fit: answers with a mean below about -0.5 are wrong."""
    found = [Confidence(-i / 100, -i / 50, -i / 100) for i in range(100)]
    wrong = [(i > 50) != (i % 7 == 0) for i in range(100)]
    fit = confidence.fit(found, wrong, task="t", strategy="no limit", checkpoint="f00d")
    confidence.write(dataclasses.replace(fit, **changes), folder / "fit.json")
    return fit


def test_an_unsure_answer_is_replaced_and_the_reply_says_all(tmp_path, server):
    server.script = [(200, completion("forty-two", reasoning="12 + 30"), {})]
    ((found,), spent) = decide(tmp_path, question(id="chatcmpl-7", key="key1"), url=server.url)
    assert found.decided and found.completion.content == "forty-two" and found.reason == "unsure"
    assert found.usd == pytest.approx((9 * 1 + 5 * 10) / 1e6) and spent == pytest.approx(found.usd)
    said = found.to_dict("41")
    assert said["decided"] and said["local_answer"] == "41" and said["remote_model"] == "big"
    assert (said["score"], said["threshold"]) == (-1.0, -0.5) and said["remote_usage"]["reasoning_tokens"] == 3
    assert server.requests[0][2]["messages"] == [{"role": "user", "content": ASKED}]
    sent, done = audit(tmp_path)
    assert sent["sha256"] == done["sha256"] == hashlib.sha256(ASKED.encode()).hexdigest()
    assert (sent["request"], sent["key"], sent["model"]) == ("chatcmpl-7", "key1", "big") and done["usd"] == found.usd
    assert (done["completion"], done["answered_by"]) == ("chatcmpl-1", "big-2026")
    assert (
        ASKED not in (tmp_path / "audit.jsonl").read_text()
        and "forty-two" not in (tmp_path / "audit.jsonl").read_text()
    )


@pytest.mark.parametrize(
    ("asked", "changes", "reason"),
    [
        (question(SURE), {}, "confident"),
        (question(consent="never"), {}, "consent"),
        (question(), {"default_consent": "never"}, "consent"),
        (question(consent="auto"), {"consent": "never", "default_consent": "never"}, "consent"),
        (question(consent="auto"), {"consent": "ask", "default_consent": "never"}, "ask"),
        (question(text="mail me at a@b.org"), {}, "blocked"),
        (question(text="the BLUEBIRD files"), {"block_patterns": ["BLUE.IRD"]}, "blocked"),
        (question(max_cost=0.001), {}, "max_cost"),
        (question(), {"caps": {"request": 0.001, "day": 1}}, "cap_request"),
        (question(key="a"), {"caps": {"request": 0.05, "day": 1, "key": 0.01}}, "cap_key"),
        (Question([Message("user", "q"), Message("assistant", "a")], UNSURE), {}, "no_question"),
    ],
)
def test_the_local_answer_stands_and_nothing_leaves(tmp_path, server, asked, changes, reason):
    ((found,), spent) = decide(tmp_path, asked, url=server.url, **changes)
    assert (found.decided, found.reason, spent) == (False, reason, 0) and found.message
    assert server.requests == [] and audit(tmp_path) == [] and "local_answer" not in found.to_dict("x")


def test_what_may_leave_is_sent_and_filtered(tmp_path, server):
    prompt = [
        Message("system", "I am a@b.org"),
        Message("user", "one"),
        Message("assistant", "1"),
        Message("user", "two"),
    ]
    asked = Question(prompt, UNSURE)
    ((found,), _) = decide(tmp_path, asked, url=server.url, send={"history": True})
    assert found.decided and [m["content"] for m in server.requests[0][2]["messages"]] == ["one", "1", "two"]
    ((found,), _) = decide(tmp_path, asked, url=server.url, send={"system": True})
    assert found.reason == "blocked" and found.message.endswith("(mail)")


def test_an_offer_is_accepted_once_and_by_its_own_key(tmp_path, server):
    async def run():
        handoff = Handoff(load(tmp_path, url=server.url), "k")
        asked = await handoff.decide(question(consent="ask", key="a"))
        assert not asked.decided and server.requests == []
        offer = asked.to_dict()["offer"]
        assert offer["model"] == "big" and offer["sends"] == ["last question"] and offer["remote"] in server.url
        assert 0 < offer["expected_cost"] < offer["most_cost"] <= 0.05
        with pytest.raises(KeyError):
            await handoff.accept(offer["id"], "b")
        found = await handoff.accept(offer["id"], "a")
        with pytest.raises(KeyError):
            await handoff.accept(offer["id"], "a")
        await handoff.close()
        return found

    found = asyncio.run(run())
    assert found.decided and found.reason == "accepted" and found.completion.content == "42"


@pytest.mark.parametrize(
    ("script", "attempts", "says"),
    [
        ([(500, b"", {})] * 2, 0, "answered 500"),
        ([hang_up] * 2, 2, "ended the connection"),
        ([(200, b"garbage", {})], 1, "no chat completion"),
        ([(401, {"error": "no"}, {})], 0, "does not accept the key"),
        ([(429, {"error": {"code": "insufficient_quota"}}, {})], 0, "no money left"),
    ],
)
def test_the_remote_fails_and_the_local_answer_stands(tmp_path, server, script, attempts, says):
    server.script = list(script)
    ((found,), spent) = decide(tmp_path, question(), url=server.url)
    assert not found.decided and found.reason == "failed" and says in found.message
    one = (len(ASKED) + 32 + 1000 * 10) / 1e6  # the worst case of an attempt whose bill nobody knows
    assert found.usd == pytest.approx(attempts * one) and spent == pytest.approx(found.usd)
    assert audit(tmp_path)[-1]["end"] == "failed"


def test_an_answer_without_text_is_paid_and_not_shown(tmp_path, server):
    server.script = [(200, completion("", reasoning="hm"), {})]
    ((found,), spent) = decide(tmp_path, question(), url=server.url)
    assert not found.decided and found.reason == "failed" and found.message.endswith("it sent no text") and spent > 0


def test_usage_that_the_remote_does_not_send_counts_as_the_worst_case(tmp_path, server):
    body = completion()
    del body["usage"]
    server.script = [(200, body, {})]
    ((found,), spent) = decide(tmp_path, question(), url=server.url)
    assert found.decided and spent == pytest.approx((len(ASKED) + 32 + 1000 * 10) / 1e6)


def test_an_answer_that_costs_more_than_its_worst_case_ends_hand_offs(tmp_path, server):
    server.script = [(200, completion() | {"usage": {"prompt_tokens": 9, "completion_tokens": 5, "cost": 0.9}}, {})]
    (first, second), spent = decide(tmp_path, question(), question(), url=server.url)
    assert first.decided and first.usd == 0.9 and spent == pytest.approx(0.9) and second.reason == "overrun"


def test_a_cancelled_request_has_spent_its_worst_case(tmp_path, server):
    async def run():
        handoff = Handoff(load(tmp_path, url=server.url), "k")
        server.script = [lambda handler: released.wait(5)]
        task = asyncio.create_task(handoff.decide(question()))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()
        spent = handoff.spending.today()
        await handoff.close()
        return spent

    released = threading.Event()
    assert asyncio.run(run()) == pytest.approx(2 * (len(ASKED) + 32 + 1000 * 10) / 1e6)
    assert audit(tmp_path)[-1]["end"] == "cancelled"


def test_a_thousand_requests_at_once_pass_no_cap(tmp_path, monkeypatch):
    """Each reserves about 0.02 USD of the day's 1 and its key's 0.3, and costs 0.011 or nothing."""
    totals, flying = [], []

    async def chat(self, messages, **_):
        flying.append(1)
        totals.append((len(flying), handoff.spending.today()))
        number = len(totals)
        for _ in range(number % 50):
            await asyncio.sleep(0)
        flying.pop()
        if number % 9 == 0:
            raise client_lib.RemoteError("server", "no")
        return client_lib.Completion("42", "", "big", "id", "stop", client_lib.reply.Usage(1000, 1000))

    async def one(i):
        for _ in range(i // 5):  # they arrive one after the other, and meet
            await asyncio.sleep(0)
        return await handoff.decide(question(key=str(max(i % 6 - 2, 0)), id=str(i)))

    async def run():
        return await asyncio.gather(*map(one, range(1000)))

    monkeypatch.setattr(client_lib.Client, "chat", chat)
    caps = {"request": 0.05, "day": 1.0, "key": 0.3}
    handoff = Handoff(load(tmp_path, caps=caps, breaker={"failures": 10_000}), "k")
    found, spent = asyncio.run(run()), handoff.spending.today()
    assert max(total for _, total in totals) <= 1.0 + 1e-9 and max(count for count, _ in totals) > 10
    assert spent == pytest.approx(sum(outcome.usd for outcome in found)) and 0.9 < spent <= 1.0 + 1e-9
    assert {outcome.reason for outcome in found} == {"unsure", "failed", "cap_key", "cap_day"}
    lines = [line for line in audit(tmp_path) if line["event"] == "done"]
    for key in "0123":
        assert sum(line["usd"] for line in lines if line["key"] == key) <= 0.3 + 1e-9


def test_the_breaker_leaves_a_broken_remote_alone(tmp_path, server):
    server.script = [(500, b"", {})] * 4
    found, _ = decide(tmp_path, *[question()] * 4, url=server.url, breaker={"failures": 2}, retries=1)
    assert [outcome.reason for outcome in found] == ["failed", "failed", "remote_down", "remote_down"]
    assert len(server.requests) == 4


def test_after_a_pause_one_request_tries():
    now = [0.0]
    breaker = CircuitBreaker(2, 10, lambda: now[0])
    for _ in range(2):
        assert breaker.enter()
        breaker.fail("timeout")
        breaker.leave()
    assert not breaker.closed and not breaker.enter()
    now[0] = 11
    assert breaker.enter() and not breaker.enter()
    breaker.fail("timeout")
    breaker.leave()
    assert not breaker.enter()
    now[0] = 22
    assert breaker.enter()
    breaker.succeed()
    breaker.leave()
    assert breaker.enter() and breaker.enter()
    breaker.fail("request")
    assert breaker.closed
    breaker.fail("key")
    assert not breaker.closed


def test_a_fit_hands_off_its_share(tmp_path, server):
    fit = make_fit(tmp_path)
    rule = {"logprob_below": None, "fit": "fit.json"}
    asked = [question(Confidence(-i / 100, -i / 50, -i / 100)) for i in range(0, 100, 2)]
    found, _ = decide(tmp_path, *asked, url=server.url, share=0.3, **rule)
    assert sum(outcome.decided for outcome in found) == pytest.approx(15, abs=1)
    assert [outcome.score for outcome in found] == pytest.approx([fit.wrong(each.confidence) for each in asked])
    assert all(outcome.decided == (outcome.score >= outcome.threshold) for outcome in found)


@pytest.mark.parametrize("of", ["answer", "all"])
def test_without_a_fit_a_mean_is_compared(tmp_path, server, of):
    asked = [question(Confidence(-0.4, -9, -0.6)), question(Confidence(-0.6, -9, -0.4))]
    found, _ = decide(tmp_path, *asked, url=server.url, logprob_of=of)
    assert [outcome.decided for outcome in found] == [of == "answer", of == "all"]
    assert [outcome.score for outcome in found] == ([-0.6, -0.4] if of == "answer" else [-0.4, -0.6])


def test_value_is_weighed_against_the_expected_price(tmp_path, server):
    fit = make_fit(tmp_path)
    rule = {"logprob_below": None, "fit": "fit.json", "mean_tokens": 100}
    price = ((8 + len(ASKED) // 4) * 1 + 100 * 10) / 1e6
    for value in (0.0, 0.5 * price, 1.5 * price, 1000 * price):
        ((found,), _) = decide(tmp_path, question(), url=server.url, value=value, **rule)
        assert found.decided == (fit.wrong(UNSURE) * value > price)
    ((found,), _) = decide(tmp_path, question(SURE), url=server.url, wrong_above=0.99, **rule)
    assert found.reason == "confident" and found.threshold == 0.99


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logprob_below": None}, "give one of logprob_below, wrong_above, share, value, not none"),
        ({"share": 0.3}, "not logprob_below, share"),
        ({"logprob_below": None, "share": 0.3}, "share needs fit"),
        ({"fit": "fit.json"}, "fit is not used with logprob_below"),
        ({"logprob_below": None, "share": 1.5, "fit": "fit.json"}, "share is 1.5"),
        ({"logprob_below": None, "share": 0.5, "fit": "none.json"}, "No such file"),
        ({"caps": {"request": 2, "day": 1}}, "caps.day at least as much"),
        ({"caps": {"day": 1}}, "caps.request is missing"),
        ({"caps": None}, "handoff.caps is missing"),
        ({"audit": None}, "handoff.audit is missing"),
        ({"price": {"input": -1, "output": 1}}, "price.input"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"mean_tokens": 2000}, "max_tokens is less"),
        ({"consent": "yes"}, "consent"),
        ({"consent": "ask", "default_consent": "auto"}, "raise consent"),
        ({"block": ["mails"]}, "out of mail, keys, digits"),
        ({"block_patterns": ["("]}, "is not a pattern"),
        ({"base_url": "big.example.com"}, "base_url is"),
        ({"api_key": "sk-1"}, "key_env"),
        ({"body": {"messages": []}}, "the server sets itself"),
        ({"shares": 0.3}, "handoff.shares is not a setting"),
        ({"breaker": {"failures": 0}}, "breaker.failures"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)  # fmt: skip
def test_a_bad_file_names_the_field(tmp_path, changes, says):
    make_fit(tmp_path)
    with pytest.raises(UserError, match=r"--handoff: .*handoff\.json") as caught:
        load(tmp_path, **changes)
    assert says in str(caught.value)


def test_a_fit_of_another_checkpoint_is_refused(tmp_path):
    make_fit(tmp_path, checkpoint="bad")
    with pytest.raises(UserError, match="other weights"):
        load(tmp_path, logprob_below=None, share=0.3, fit="fit.json")
    make_fit(tmp_path, features=("mean", "lowest_window", "answer", "agrees"))
    with pytest.raises(UserError, match="answers of fewer waits"):
        load(tmp_path, logprob_below=None, share=0.3, fit="fit.json")


@pytest.mark.parametrize(
    ("content", "says"), [(b"[]", "not a JSON object"), (b"{", "not JSON"), (None, "No such file")]
)
def test_a_file_that_is_none_is_refused(tmp_path, content, says):
    if content is not None:
        (tmp_path / "h.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        handoff_config.load(str(tmp_path / "h.json"))
