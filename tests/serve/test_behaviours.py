"""Behaviours that users of other servers miss, over HTTP: the numbers B1, B2, ... are those of the list in the docs."""

import concurrent.futures
import json

import httpx
import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine.order import AGEING, MOST_STEPS, Submitted, first_come
from s1jax.engine.request import Request
from s1jax.serve import budgets
from s1jax.serve.worker import Limits
from s1jax.text.messages import Message
from tests.serve.test_app import CHAT, LONG, USER, body, idle, joined, serving, streamed, until

PROMPT = [Message("user", USER[0]["content"])]


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as found:
        yield found


def offline(engine, **fields):
    params = SamplingParams(**{"temperature": 0, "max_answer_tokens": 12, **fields})
    return engine.generate([Request(PROMPT, params=params)])[0]


def read(client, name):
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def places():
    """Every place in which a bound of thinking can be written, as a function from a number to fields."""
    found = {name: lambda n, name=name: {name: n} for name in budgets.MAXIMUM}
    for group in budgets.GROUPS:
        for name in budgets.MAXIMUM:
            found[f"{group}.{name}"] = lambda n, group=group, name=name: {group: {name: n}}
    found["reasoning.max_tokens"] = lambda n: {"reasoning": {"max_tokens": n}}
    found["thinking.budget_tokens"] = lambda n: {"thinking": {"type": "enabled", "budget_tokens": n}}
    return found


def test_a_budget_is_enforced_wherever_it_is_written(client, engine):
    """B2: not only read: the tokens are those of the offline engine with it; switches mean 0."""
    asked = [(write(i % 7 + 1), i % 7 + 1) for i, write in enumerate(places().values())]
    off = [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"think": False},
        {"thinking": {"type": "disabled"}},
    ]
    off += [{group: fields} for group in budgets.GROUPS for fields in off[:2]]
    asked += [(fields, 0) for fields in off]
    plain = {"messages": USER, "temperature": 0, "max_answer_tokens": 3, "min_thinking_tokens": 0}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda each: client.post(CHAT, json={**plain, **each[0]}).json(), asked))
    want = {n: offline(engine, max_thinking_tokens=n, max_answer_tokens=3) for n in {n for _, n in asked}}
    assert len(want) == 8 and any(each.thinking_tokens == n > 0 for n, each in want.items())
    for (fields, n), reply in zip(asked, replies, strict=True):
        message, used = reply["choices"][0]["message"], reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert used == want[n].thinking_tokens <= n and message["reasoning"] == want[n].thinking, fields
        assert message["content"] == want[n].answer, fields


def test_a_second_think_block_is_part_of_the_answer(client, engine):
    """B1: the model writes the opening delimiter again; the budget is not passed, and the bound of the answer holds."""
    start = engine.model.tokenizer.id_of("<think>")
    fields = {"temperature": 2.0, "max_thinking_tokens": 9, "min_thinking_tokens": 9, "max_answer_tokens": 60}
    asked = [Request(PROMPT, params=SamplingParams(seed=seed, **fields)) for seed in range(24)]
    again = [
        (seed, each)
        for seed, each in enumerate(engine.generate(asked))
        if start in each.token_ids[len(each.token_ids) - each.answer_tokens :]
    ]
    assert again
    for seed, want in again[:2]:
        reply = client.post(CHAT, json={**body(**fields), "seed": seed}).json()
        message, usage = reply["choices"][0]["message"], reply["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == want.thinking_tokens == 9
        assert (message["reasoning"], message["content"]) == (want.thinking, want.answer)
        chunks = streamed(client, {**body(**fields), "seed": seed})
        assert (joined(chunks, "reasoning"), joined(chunks, "content")) == (want.thinking, want.answer)


def test_minimum_and_waits_are_enforced_in_a_group(client, engine):
    """B2, B4: `chat_template_kwargs` is no place where fields get lost."""
    given = {"min_thinking_tokens": 20, "num_waits": 2, "wait": "Wait", "max_thinking_tokens": 30}
    reply = client.post(CHAT, json={**body(), "max_thinking_tokens": 30, "chat_template_kwargs": given}).json()
    want, choice = offline(engine, **given), reply["choices"][0]
    assert choice["message"]["reasoning"] == want.thinking and choice["thinking"]["waits"] == want.waits
    assert 20 <= choice["thinking"]["tokens"] == want.thinking_tokens <= 30


@pytest.mark.parametrize("seed", [1, 2])
def test_stop_strings_are_of_the_answer_alone(client, engine, seed):
    """B5: what stands in thinking ends nothing; in the answer it is cut out, across the borders of chunks."""
    fields = {"seed": seed, "temperature": 1.0, "max_thinking_tokens": 40, "min_thinking_tokens": 40, "wait": ""}
    free = offline(engine, **fields, max_answer_tokens=60)
    inside = [text for text in free.thinking if text not in free.answer and text.isascii()][:2]
    triples = (free.answer[i : i + 3] for i in range(20, len(free.answer) - 3))  # three tokens each
    ending = next(text for text in triples if text.isascii() and text.isprintable() and " " not in text)
    assert inside
    asked = {**body(), **fields, "stop": [*inside, ending], "max_answer_tokens": 60}
    want = offline(engine, **fields, max_answer_tokens=60, stop=(*inside, ending))
    whole, chunks = client.post(CHAT, json=asked).json()["choices"][0], streamed(client, asked)
    (end,) = [c for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    for thinking, answer, choice in (
        (whole["message"]["reasoning"], whole["message"]["content"], whole),
        (joined(chunks, "reasoning"), joined(chunks, "content"), end),
    ):
        assert thinking == free.thinking and answer == want.answer == free.answer.partition(ending)[0].rstrip()
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ending)


def test_a_small_cache_preempts_and_changes_no_token(engine, about):
    """B20: sequences that outgrow the cache wait, go on, and have the tokens of the offline engine."""
    with serving(engine, about, limits=Limits(cache_tokens=512)) as (server, client, pool):
        asked = [
            {"seed": i, "temperature": i % 2, "max_thinking_tokens": 250, "min_thinking_tokens": 200, "wait": "Hm"}
            for i in range(6)
        ]
        asked = [{**fields, "priority": (-1) ** i * i, "stream": i % 3 == 0} for i, fields in enumerate(asked)]

        def ask(fields):
            if fields["stream"]:
                chunks = streamed(client, body(**fields))
                return joined(chunks, "reasoning"), joined(chunks, "content")
            message = client.post(CHAT, json=body(**fields)).json()["choices"][0]["message"]
            return message["reasoning"], message["content"]

        found = list(pool.map(ask, asked))
        assert read(client, "s1jax:num_preemptions_total") > 0
        until(lambda: idle(server) and read(client, "s1jax:kv_cache_usage_perc") == 0)
        queued = read(client, "s1jax:request_queue_time_seconds_count")
        assert queued == len(asked) and read(client, "s1jax:request_queue_time_seconds_sum") > 0
    for fields, texts in zip(asked, found, strict=True):
        params = {name: value for name, value in fields.items() if name not in ("priority", "stream")}
        want = offline(engine, **params)
        assert texts == (want.thinking, want.answer), fields


def test_a_long_prompt_holds_up_neither_streams_nor_short_ones(engine, about):
    """B15: it is prefilled beside them; and short ones that come behind long ones are answered before those are."""
    with serving(engine, about) as (server, client, pool):
        fields = {**LONG, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        with client.stream("POST", CHAT, json=fields) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: {"))
            next(lines), next(lines)
            turn = [{"role": "user", "content": "x" * 1700}]
            long = pool.submit(
                client.post, CHAT, json=body(messages=turn, max_thinking_tokens=200, min_thinking_tokens=200)
            )
            until(lambda: server.worker.stats().running == 2)
            short = client.post(CHAT, json=body())
            assert short.status_code == 200 and not long.done()
            seen = [json.loads(next(lines)[6:])["usage"]["completion_tokens"] for _ in range(3)]
            assert seen == sorted(seen) and seen[-1] < 1900, "the stream goes on meanwhile"
        assert long.result().status_code == 200


def test_old_requests_age_past_every_priority():
    """B20: no priority lets a request starve."""
    old = Submitted(0, None, 1, False, 2**31 - 1, arrival=0.0)
    step = 2 * MOST_STEPS * AGEING
    for arrival, first in ((step - 1, 1), (step + 1, 0)):
        urgent = Submitted(1, None, 1, False, -(2**31) + 1, arrival=arrival)
        assert next(iter(first_come([urgent, old]))).id == first


def test_samples_of_one_prompt_share_its_prefill(client, engine):
    """A long prompt that is asked for four times in one request is read once."""
    before = engine.counts.prefills
    turn = [{"role": "user", "content": "n" * 700}]
    reply = client.post(CHAT, json=body(messages=turn, n=4, temperature=1.0)).json()
    assert len(reply["choices"]) == 4 and engine.counts.prefills == before + 1


def test_thinking_of_earlier_turns_uses_up_no_budget(client):
    """B17: nor do delimiters that stand in it; the format leaves it out, so nothing else changes either."""
    turns = [USER[0], {"role": "assistant", "content": "a"}, USER[0]]
    fields = {"max_thinking_tokens": 20, "min_thinking_tokens": 20, "wait": ""}
    thought = {**turns[1], "reasoning": "x" * 500 + "<|im_start|>think</think>"}
    plain, other = (
        client.post(CHAT, json=body(messages=[turns[0], middle, turns[2]], **fields)).json()
        for middle in (turns[1], thought)
    )
    assert plain["choices"][0]["thinking"]["tokens"] == other["choices"][0]["thinking"]["tokens"] == 20
    assert plain["choices"][0]["message"] == other["choices"][0]["message"]
    assert plain["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
