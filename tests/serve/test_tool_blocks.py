"""Tools in Anthropic's API: what is read, what is written, and what its released client makes of it."""

import dataclasses
import random

import pytest

from s1jax.serve import anthropic, openapi
from s1jax.serve.protocol import ApiError
from s1jax.serve.reader import Reader
from s1jax.text import tools
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall
from tests.serve.test_stream_helpers import client
from tests.serve.test_tool_calls import ADD, CALL_TEXT, DEFAULTS, USER, answered, changed, deep

TOOL = {"name": "add", "description": "Adds.", "input_schema": ADD["function"]["parameters"]}
PATH = "/v1/messages"


def said(*ids, text="I add."):
    calls = [{"type": "tool_use", "id": i, "name": "add", "input": {"a": i}} for i in ids]
    blocks = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": text}]
    return {"role": "assistant", "content": blocks + calls}


def results_of(*ids, text=()):
    blocks = [{"type": "tool_result", "tool_use_id": i, "content": f"= {i}"} for i in ids]
    return {"role": "user", "content": [*blocks, *({"type": "text", "text": each} for each in text)]}


def parse(*messages, defaults=DEFAULTS, **fields):
    return anthropic.read(Reader({"max_tokens": 500, "messages": list(messages) or [USER], **fields}), defaults)


def test_tools_of_a_request():
    call = parse(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert call.one_tool_call and call.ignored == ()
    assert call.tools == ({"type": "function", "function": {**ADD["function"], "description": "Adds."}},)
    assert parse(tools=[TOOL], tool_choice={"type": "none"}).tools == ()
    more = {**TOOL, "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}
    assert parse(tools=[more]).ignored == ("tools[].strict", "tools[].cache_control")


def test_blocks_become_messages_in_the_order_of_the_calls():
    calls = tuple(ToolCall("add", f'{{"a": "{i}"}}') for i in "xy")
    call = parse(USER, said("x", "y"), results_of("y", "x", text=["So?"]), tools=[TOOL])
    assert call.prompts[0][1:] == (
        Message("assistant", "I add.", "Hm.", calls),
        Message("tool", "= x"),
        Message("tool", "= y"),
        Message("user", "So?"),
    )
    failed = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "is_error": True}]}
    call = parse(USER, said("x"), failed)
    assert call.prompts[0][-1] == Message("tool", "") and call.ignored == ("messages[].content[].is_error",)


late = {"role": "user", "content": [{"type": "text", "text": "a"}, *results_of("x")["content"]]}


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([USER], {"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ([USER], {"tool_choice": {"type": "tool", "name": "add"}}, "tool_choice.type"),
        ([USER], {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ([USER], {"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ([USER], {"tools": [{"name": "a", "input_schema": deep(101)}]}, "tools[0].input_schema"),
        ([USER, said("x"), results_of("y")], {}, "messages[2].content[0].tool_use_id"),
        ([USER, said("x", "x"), results_of("x")], {}, "messages[1].content[3].id"),
        ([USER, said("x")], {}, "messages[1].role"),
        ([USER, said("x"), late], {}, "messages[2].content[1]"),
        ([results_of("x")], {"defaults": dataclasses.replace(DEFAULTS, tools=False)}, "messages[0].content[0].type"),
        ([USER], {"tools": [TOOL], "defaults": dataclasses.replace(DEFAULTS, tools=False)}, "tools"),
    ],
)  # fmt: skip
def test_what_is_refused(messages, fields, param):
    with pytest.raises(ApiError) as error:
        parse(*messages, **fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_the_document_describes_tools_as_they_are_read():
    jsonschema = pytest.importorskip("jsonschema")
    rng, seen = random.Random(0), [0, 0]
    validator = jsonschema.Draft202012Validator(openapi.body(PATH, DEFAULTS))
    bodies = [
        {"max_tokens": 9, "messages": [USER], "tools": [TOOL], "tool_choice": {"type": t}} for t in ("auto", "any")
    ]
    bodies += [{"max_tokens": 9, "messages": [USER, said("a"), results_of("a", text=["So?"])], "tools": [TOOL]}] * 2
    for body in bodies + [changed(rng.choice(bodies), rng) for _ in range(1500)]:
        if not isinstance(body, dict):
            continue
        try:
            anthropic.read(Reader(body), DEFAULTS)
            accepted = True
        except ApiError as error:
            accepted = False
            words = ("no call that waits", "last message", "put results first", "another call", "field of this API")
            if any(each in error.message for each in words):
                continue  # hangs on other messages
        assert accepted == validator.is_valid(body), body
        seen[accepted] += 1
    assert min(seen) > 100


@pytest.mark.parametrize("seed", range(20))
def test_the_released_client_puts_calls_together(seed):
    released = pytest.importorskip("anthropic")
    rng = random.Random(seed)
    parts = ["a", "\n", "é ", CALL_TEXT % 1, CALL_TEXT % 2, "<tool_call>", "</tool_call>"]
    answer = "".join(rng.choices(parts, k=rng.randrange(5))).strip()
    result, pieces = answered(rng, answer, ["stop", "length"][seed % 5 == 0])
    asked = client(released.Anthropic, result, pieces, "", DEFAULTS)
    fields = {"model": "s1", "max_tokens": 2000, "messages": [USER], "tools": [TOOL]}
    fields |= {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = asked.messages.create(**fields)
    with asked.messages.stream(**fields) as stream:
        final = stream.get_final_message()
    shown = [[(b.type, getattr(b, "text", None), getattr(b, "input", None)) for b in m.content] for m in (whole, final)]
    assert shown[0] == shown[1] and whole.stop_reason == final.stop_reason
    text, calls = tools.parse(answer)
    assert "".join(block.text for block in whole.content if block.type == "text") == text
    used = [block for block in whole.content if block.type == "tool_use"]
    assert [block.input for block in used] == [{"a": int(call.arguments[-2])} for call in calls]
    assert (whole.stop_reason == "tool_use") == bool(calls and seed % 5)
    if calls:  # the message goes back as the client keeps it
        history = [USER, {"role": "assistant", "content": [block.to_dict() for block in whole.content]}]
        back = parse(*history, results_of(*(block.id for block in used)))
        assert [call.name for call in back.prompts[0][1].tool_calls] == ["add"] * len(calls)
