"""Streamed completions, put together from pieces of any size."""

import json
import random

import pytest

from s1jax.remote import reply
from s1jax.remote.stream import Assembly

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 3}}


def events(*deltas, finish="stop", usage=USAGE, end=True):
    found = [{"id": "c1", "model": "big", "choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    if finish:
        found.append({"id": "c1", "model": "big", "choices": [{"delta": {}, "finish_reason": finish}]})
    if usage:
        found.append({"id": "c1", "model": "big", "choices": None, "usage": usage})
    text = ": keep-alive\n\n" + "".join(f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n" for event in found)
    return (text + "data: [DONE]\n\n" * end).encode()


def parsed(data, seed=0):
    rng, assembly, at = random.Random(seed), Assembly(), 0
    while at < len(data):
        size = rng.randint(1, 40)
        assembly.feed(data[at : at + size])
        at += size
    return reply.parse(assembly.body(), {})


@pytest.mark.parametrize("name", reply.REASONING_FIELDS)
def test_the_pieces_give_the_whole_completion(name):
    deltas = [{"role": "assistant", "content": ""}, {name: "12 + "}, {name: "30 ä"}, {"content": "4"}, {"content": "2"}]
    for seed in range(5):
        found = parsed(events(*deltas), seed)
        assert (found.reasoning, found.content, found.model, found.id) == ("12 + 30 ä", "42", "big", "c1")
        assert found.finish_reason == "stop" and found.usage == reply.Usage(9, 5, 0, 3)


def test_how_thinking_ended_is_kept():
    event = {"choices": [{"delta": {}, "finish_reason": "stop", "thinking": {"end": "cut", "tokens": 5}}]}
    data = events({"reasoning_content": "r"}, {"content": "42"}, finish="", end=False)
    assert parsed(data + f"data: {json.dumps(event)}\n\n".encode()).thinking_end == "cut"


def test_typed_parts_and_tags_are_thinking_as_well():
    part = {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}
    assert parsed(events({"content": [part]}, {"content": [part]}, {"content": "42"})).reasoning == "rr"
    assert parsed(events({"content": "<thi"}, {"content": "nk>r</think>42"})).content == "42"
    details = [{"type": "reasoning.text", "text": "a"}]
    assert (
        parsed(events({"reasoning_details": details}, {"reasoning_details": details}, {"content": "x"})).reasoning
        == "aa"
    )


def test_the_last_count_of_usage_counts():
    data = events({"content": "4"}, usage={"prompt_tokens": 9, "completion_tokens": 1}, end=False) + events(
        {"content": "2"}
    )
    assert parsed(data).usage.completion_tokens == 5 and parsed(data).content == "42"
    assert parsed(events({"content": "42"}, usage=None)).usage is None


def test_an_error_or_a_broken_stream_is_no_completion():
    assembly = Assembly()
    assembly.feed(events({"content": "4"}, finish="", end=False) + b'data: {"error": {"message": "gone"}}\n\n')
    assert assembly.body() == {"error": {"message": "gone"}}
    with pytest.raises(ValueError, match="broke off"):
        parsed(events({"content": "4"}, finish="", usage=None, end=False))
    for line in (b"data: {oops\n", b"data: 7\n"):
        with pytest.raises(ValueError):
            Assembly().feed(line)
