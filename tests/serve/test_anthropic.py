import random

import pytest

from s1jax.serve import anthropic
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from s1jax.text.messages import Message
from tests.serve import replies

DEFAULTS = Defaults(model="s1", context_length=10_000)
BODY = {"max_tokens": 500, "messages": [{"role": "user", "content": "hi"}]}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 64}}


def parse(**fields):
    return anthropic.read(Reader({**BODY, **fields}), DEFAULTS)


def test_fields_become_sampling_parameters():
    call = parse(**THINK, stop_sequences=["END"], top_k=5, system=[{"type": "text", "text": "Be brief."}])
    assert call.prompts == ((Message("system", "Be brief."), Message("user", "hi")),)
    assert (call.params.max_thinking_tokens, call.params.stop, call.params.top_k) == (64, ("END",), 5)
    assert call.max_completion_tokens == 500 and call.include_reasoning
    assert parse(output_config={"effort": "low"}).params.max_thinking_tokens == 1024
    assert parse(thinking={"type": "disabled"}).params.max_thinking_tokens == 0
    assert parse(metadata={"user_id": "1"}).ignored == ("metadata",)


def test_thinking_is_sent_only_if_the_request_speaks_of_it():
    assert not parse().include_reasoning
    assert parse(thinking={"type": "adaptive"}).include_reasoning
    assert parse(thinking_token_budget=8).include_reasoning
    assert not parse(thinking={"type": "adaptive", "display": "omitted"}).include_reasoning


def test_thinking_blocks_of_earlier_turns_are_thinking():
    blocks = [
        {"type": "thinking", "thinking": "a", "signature": ""}, {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "b"}, {"type": "text", "text": "c"},
    ]  # fmt: skip
    user = {"role": "user", "content": [{"type": "text", "text": "q"}]}
    turns = [user, {"role": "assistant", "content": blocks}, user]
    assert parse(messages=turns).prompts[0][1] == Message("assistant", "bc", "a")


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"tools": [{}]}, "tools"),
        ({"stop": ["a"]}, "stop"), ({"stop_sequences": [""]}, "stop_sequences"), ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0].role"),
        ({"thinking": {"type": "enabled", "budget_tokens": "64"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "on"}}, "thinking.type"), ({"output_config": {"format": {}}}, "output_config.format"),
        ({"system": 1}, "system"), ({"n": 2}, "n"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_path(fields, param):
    with pytest.raises(ApiError) as error:
        parse(**fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_random_bodies_raise_nothing_but_a_4xx():
    refused = replies.fuzz(anthropic, DEFAULTS, BODY, 3, 3000)
    assert 500 < refused < 3000


def events(call, result, pieces) -> list[dict]:
    return replies.named_events(anthropic.Stream(call), result, pieces)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fields", [THINK, {}])
def test_a_stream_builds_the_whole_reply(seed, fields):
    call = parse(stream=True, **fields)
    result, pieces = replies.result(random.Random(seed))
    whole, found = anthropic.whole(call, [result]), events(call, result, pieces)
    message = found[0]["message"]
    for event in found[1:]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(message["content"]) - 1
            for name in ("thinking", "text", "signature"):
                message["content"][-1][name] = message["content"][-1].get(name, "") + event["delta"].get(name, "")
        elif event["type"] == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    for block in message["content"]:
        for name in ("text", "signature", "thinking"):
            if name not in whole["content"][message["content"].index(block)]:
                assert block.pop(name) == ""
    assert message == {name: whole[name] for name in message}
    assert found[-1]["type"] == "message_stop"
    reason = {"length": "max_tokens", "stop": "stop_sequence" if result.output.stop_reason else "end_turn"}
    assert whole["stop_reason"] == reason[result.output.answer_end]
    usage = whole["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == result.prompt_tokens
    assert usage["output_tokens"] == result.completion_tokens
    assert fields or "thinking" not in [block["type"] for block in whole["content"]]


@pytest.mark.parametrize("seed", range(5))
def test_anthropic_reads_replies_and_events(seed):
    types, pydantic = pytest.importorskip("anthropic.types"), pytest.importorskip("pydantic")
    call = parse(stream=True, **THINK)
    result, pieces = replies.result(random.Random(seed))
    reply = types.Message.model_validate(anthropic.whole(call, [result]), strict=True)
    assert reply.content[-1].text == result.output.answer
    adapter = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    for event in events(call, result, pieces):
        assert adapter.validate_python(event, strict=True).type == event["type"]


def test_errors_have_anthropics_form():
    assert anthropic.fail(ApiError("m", "model", status=404))["error"]["type"] == "not_found_error"
    for status, kind in ((400, "invalid_request_error"), (503, "overloaded_error"), (500, "api_error")):
        error = anthropic.fail(ApiError("m", status=status))
        assert error == {"type": "error", "error": {"type": kind, "message": "m", "param": None}}
    ((name, data),) = anthropic.Stream(parse()).fail(ApiError("m", status=500))
    assert name == data["type"] == "error"
