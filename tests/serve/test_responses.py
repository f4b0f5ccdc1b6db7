import random

import pytest

from s1jax.serve import responses
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from s1jax.text.messages import Message
from tests.serve import replies

DEFAULTS = Defaults(model="s1", context_length=10_000)


def parse(**fields):
    return responses.read(Reader({"input": "hi", **fields}), DEFAULTS)


def test_input_becomes_a_conversation():
    assert parse(instructions="Be brief.").prompts == ((Message("system", "Be brief."), Message("user", "hi")),)
    items = [
        {"role": "developer", "content": "A"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "c"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "d", "annotations": []}]},
        {"role": "user", "content": "e"},
    ]  # fmt: skip
    call = parse(input=items)
    assert call.prompts == (
        (Message("system", "A"), Message("user", "b"), Message("assistant", "d", "c"), Message("user", "e")),
    )  # fmt: skip
    assert set(call.ignored) == {"input[].id", "input[].status", "input[].summary", "input[].content[].annotations"}


def test_a_reply_can_be_sent_back_as_input():
    rng = random.Random(0)
    result = next(r for r, _ in iter(lambda: replies.result(rng), None) if r.output.thinking)
    output = responses.whole(parse(), [result])["output"]
    question = {"role": "user", "content": "and?"}
    conversation = parse(input=[question, *output, question]).prompts[0]
    assert conversation[1] == Message("assistant", result.output.answer, result.output.thinking)


def test_fields_become_sampling_parameters():
    call = parse(
        max_output_tokens=50, reasoning={"effort": "low", "summary": "auto"}, temperature=0.5, metadata={"a": "b"},
        text={"format": {"type": "text"}, "verbosity": "medium"}, store=True, truncation="disabled", tools=[],
        thinking_token_budget=9,
    )  # fmt: skip
    assert (call.max_completion_tokens, call.params.max_thinking_tokens, call.params.temperature) == (50, 9, 0.5)
    assert set(call.ignored) == {"store", "reasoning.summary"}
    assert call.repeated["metadata"] == {"a": "b"} and call.repeated["reasoning"]["effort"] == "low"


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"), ({"truncation": "auto"}, "truncation"), ({"n": 2}, "n"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"), ({"tools": [{}]}, "tools"),
        ({"max_tokens": 5}, "max_tokens"), ({"max_output_tokens": 0}, "max_output_tokens"), ({"input": None}, "input"),
        ({"input": []}, "input"), ({"input": [{"type": "function_call"}]}, "input[0].type"),
        ({"input": [{"role": "assistant", "content": "a"}]}, "input"), ({"metadata": {"a": 1}}, "metadata"),
        ({"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]},
                    {"role": "user", "content": "a"}]}, "input[1]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_path(fields, param):
    with pytest.raises(ApiError) as error:
        parse(**fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_random_bodies_raise_nothing_but_a_4xx():
    refused = replies.fuzz(responses, DEFAULTS, {"input": "a"}, 2, 3000)
    assert 500 < refused < 3000


def events(call, result, pieces) -> list[dict]:
    return replies.named_events(responses.Stream(call), result, pieces)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shown", [True, False])
def test_a_stream_builds_the_whole_reply(seed, shown):
    call = parse(stream=True, include_reasoning=shown)
    result, pieces = replies.result(random.Random(seed))
    whole, found = responses.whole(call, [result]), events(call, result, pieces)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found[:2]] == ["response.created", "response.in_progress"]
    assert found[-1]["type"] == f"response.{whole['status']}" and found[-1]["response"] == whole
    assert [e["item"] for e in found if e["type"] == "response.output_item.done"] == whole["output"]
    for index, item in enumerate(whole["output"]):
        mine = [event for event in found if event.get("output_index") == index]
        deltas = [event["delta"] for event in mine if event["type"].endswith("text.delta")]
        assert "".join(deltas) == item["content"][0]["text"]
        (done,) = [event for event in mine if event["type"].endswith("text.done")]
        assert done["text"] == item["content"][0]["text"] and done["item_id"] == item["id"]
    assert whole["usage"]["total_tokens"] == result.prompt_tokens + result.completion_tokens
    cut = whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut == (whole["status"] == "incomplete") == (result.output.answer_end == "length")


@pytest.mark.parametrize("seed", range(5))
def test_openai_reads_replies_and_events(seed):
    types, pydantic = pytest.importorskip("openai.types.responses"), pytest.importorskip("pydantic")
    call = parse(stream=True, instructions="a", metadata={"a": "b"}, reasoning={"effort": "low"})
    result, pieces = replies.result(random.Random(seed))
    reply = types.Response.model_validate(responses.whole(call, [result]), strict=False)
    assert reply.output_text == result.output.answer
    adapter = pydantic.TypeAdapter(types.ResponseStreamEvent)
    stream = responses.Stream(call)
    failed = [*stream.begin(), *stream.fail(ApiError("broken", status=500, type="server_error"))]
    for event in [*events(call, result, pieces), *(data for _, data in failed)]:
        assert adapter.validate_python(event).type == event["type"]
