"""Tools in chats: what is read, what is written, and what openai-python makes of it."""

import dataclasses
import random

import pytest

from s1jax.engine.pieces import Piece
from s1jax.serve import chat, handoff_calls, openapi, protocol
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from s1jax.text import tools
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall
from tests.serve import replies
from tests.serve.test_stream_helpers import client

DEFAULTS = Defaults(model="s1", context_length=10_000, tools=True)
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
USER = {"role": "user", "content": "Add."}


def deep(levels):
    """Nested objects."""
    value = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def said(*ids, **fields):
    calls = [{"id": i, "type": "function", "function": {"name": "add", "arguments": f'{{"a":  "{i}"}}'}} for i in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls, **fields}


def result_of(id_, content="3"):
    return {"role": "tool", "tool_call_id": id_, "content": content}


def parse(*messages, defaults=DEFAULTS, **fields):
    return chat.read(Reader({"messages": list(messages) or [USER], **fields}), defaults)


def refusal(*messages, **fields) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse(*messages, **fields)
    assert error.value.status == 400
    return error.value


def test_tools_of_a_request():
    call = parse(tools=[ADD], tool_choice="auto")
    assert call.tools == (ADD,) and call.ignored == () and not call.one_tool_call
    assert call.requests(lambda text: ())[0].tools == (ADD,)
    assert parse(tools=[{**ADD, "x": deep(98)}]).tools
    assert parse(tools=[ADD], parallel_tool_calls=False).one_tool_call
    assert parse(tools=[ADD], tool_choice="none").tools == parse(tools=[]).tools == ()
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    assert parse(tools=[ADD, strict]).ignored == ("tools[].function.strict",)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice"),
        ({"tools": [ADD, {"type": "custom", "custom": {"name": "a"}}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{**ADD, "x": "\ud800"}]}, "tools[0]"),
        ({"tools": [{**ADD, "x": deep(100)}]}, "tools[0]"),
        ({"tools": [{**ADD, "x": deep(2000)}]}, "tools[0]"),
        ({"tools": ADD}, "tools"),
        ({"think_longer": {"id": "chatcmpl-1"}, "messages": [], "tools": [ADD]}, "tools"),
    ],
)
def test_what_is_refused(fields, param):
    assert refusal(**{"tools": [ADD], **fields}).param == param


def test_formats_without_tools_refuse_them_by_name():
    none = dataclasses.replace(DEFAULTS, tools=False)
    for fields, param in (({"tools": [ADD]}, "tools"), ({"tool_choice": "required"}, "tool_choice")):
        error = refusal(defaults=none, **fields)
        assert error.param == param and "the chat format of this model has no tools" in error.message
    assert refusal(USER, said("a"), USER, defaults=none).param == "messages[1].tool_calls"
    assert refusal(result_of("a"), defaults=none).param == "messages[0].role"
    assert parse(tools=[], tool_choice="auto", parallel_tool_calls=True, defaults=none).ignored == (
        "parallel_tool_calls",
    )


def test_results_follow_in_the_order_of_their_calls():
    asks, calls = Message("user", "Add."), tuple(ToolCall("add", f'{{"a":  "{i}"}}') for i in "xy")
    call = parse(
        USER, said("x", "y", reasoning="Hm."), result_of("y", "2"), result_of("x", [{"type": "text", "text": "1"}])
    )
    assert call.prompts[0] == (asks, Message("assistant", "", "Hm.", calls), Message("tool", "1"), Message("tool", "2"))
    call = parse(USER, said("x", content="I add."), result_of("x"), USER)
    assert call.prompts[0] == (asks, Message("assistant", "I add.", None, calls[:1]), Message("tool", "3"), asks)
    empty = said("x")
    empty["tool_calls"][0]["function"]["arguments"] = ""
    assert parse(USER, empty, result_of("x")).prompts[0][1].tool_calls == (ToolCall("add", "{}"),)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, result_of("a")], "messages[1].tool_call_id"),
        ([USER, said("a"), result_of("b")], "messages[2].tool_call_id"),
        ([USER, said("a"), result_of("a"), result_of("a")], "messages[3].tool_call_id"),
        ([USER, said("a"), USER, result_of("a")], "messages[3].tool_call_id"),
        ([USER, said("a"), {"role": "tool", "content": "3"}], "messages[2].tool_call_id"),
        ([USER, said("a", "a"), USER], "messages[1].tool_calls"),
        ([USER, said("a")], "messages[1].role"),
        ([{**USER, "tool_calls": said("a")["tool_calls"]}], "messages[0].tool_calls"),
        ([{**USER, "tool_call_id": "a"}], "messages[0].tool_call_id"),
        ([USER, said(content=None), USER], "messages[1].content"),
    ],
)
def test_messages_that_are_refused(messages, param):
    assert refusal(*messages).param == param


@pytest.mark.parametrize("arguments", ["[]", "{", "3", None, {}])
def test_arguments_are_a_json_object_as_a_string(arguments):
    message = said("a")
    message["tool_calls"][0]["function"]["arguments"] = arguments
    assert refusal(USER, message, result_of("a")).param == "messages[1].tool_calls[0].function.arguments"


def changed(value, rng):
    """A copy with one value replaced or left out."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice([None, 3, "", "x", {}, [], True])
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, list):
        return [changed(each, rng) if i == key else each for i, each in enumerate(value)]
    if rng.random() < 0.15:
        return {name: each for name, each in value.items() if name != key}
    return {name: changed(each, rng) if name == key else each for name, each in value.items()}


def test_the_document_describes_tools_as_they_are_read():
    jsonschema = pytest.importorskip("jsonschema")
    validator, rng, seen = (
        jsonschema.Draft202012Validator(openapi.body("/v1/chat/completions", DEFAULTS)),
        random.Random(0),
        [0, 0],
    )
    bodies = [{"messages": [USER], "tools": [ADD], "tool_choice": choice} for choice in ("auto", "none", "required")]
    bodies += [{"messages": [USER, said("a", "b"), result_of("a"), result_of("b")], "tools": [ADD]}]

    for body in bodies + [changed(rng.choice(bodies), rng) for _ in range(1500)]:
        if not isinstance(body, dict) or "messages" not in body:
            continue  # think_longer has none
        try:
            chat.read(Reader(body), DEFAULTS)
            accepted = True
        except ApiError as error:
            accepted = False
            # What hangs on other messages, or on the text of the arguments.
            if (
                "tool_call_id" in str(error.param)
                or "written as a string" in error.message
                or "id twice" in error.message
            ):
                continue
            if "last message" in error.message:
                continue
        assert accepted == validator.is_valid(body), body
        seen[accepted] += 1
    assert min(seen) > 100


CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a":  %d}}\n</tool_call>'


def answered(rng: random.Random, answer: str, end: str = "stop"):
    """A result with an answer, and its pieces."""
    result, pieces = replies.result(rng)
    output = dataclasses.replace(result.output, answer=answer, answer_end=end, stop_reason=None)
    kept, at = [piece for piece in pieces if piece.part == "thinking"], 0
    while at < len(answer):
        step = rng.randrange(1, 9)
        kept.append(Piece("answer", answer[at : at + step], (11,), False))
        at += step
    return dataclasses.replace(result, output=output), [*kept, Piece("answer", "", (), False, output)]


@pytest.mark.parametrize("seed", range(4))
def test_openai_puts_calls_together(seed):
    openai = pytest.importorskip("openai")
    rng = random.Random(seed)
    answer = ["", "I add.\n"][seed % 2] + CALL_TEXT % 1 + "\n" + CALL_TEXT % 2
    result, pieces = answered(rng, answer)
    asked = client(openai.OpenAI, result, pieces, "/v1", DEFAULTS)
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    whole = asked.chat.completions.create(model="s1", messages=[USER], tools=[strict]).choices[0]
    with asked.chat.completions.stream(model="s1", messages=[USER], tools=[strict]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        choice = stream.get_final_completion().choices[0]
    assert [event.arguments for event in done] == ['{"a":  1}', '{"a":  2}']
    for each in (whole, choice):
        assert each.finish_reason == "tool_calls" and (each.message.content or "") == ["", "I add."][seed % 2]
        assert [(c.type, c.function.name, c.function.arguments) for c in each.message.tool_calls] == [
            ("function", "add", '{"a":  1}'),
            ("function", "add", '{"a":  2}'),
        ]
    assert whole.message.content is None or seed % 2
    ids = [c.id for c in whole.message.tool_calls]
    assert len({*ids}) == 2 and max(map(len, ids)) <= 40
    back = parse(USER, whole.message.to_dict(), *(result_of(i) for i in ids))  # the message goes back as it is
    assert back.prompts[0][1].tool_calls == (ToolCall("add", '{"a":  1}'), ToolCall("add", '{"a":  2}'))


@pytest.mark.parametrize("seed", range(30))
def test_streams_say_what_whole_replies_say(seed):
    rng = random.Random(seed)
    parts = [
        "a",
        "\n",
        " ",
        "é\n\n",
        CALL_TEXT % 1,
        CALL_TEXT % 2,
        "<tool_call>",
        "</tool_call>",
        '{"name": "a"}',
        "<to",
    ]
    choices = [
        answered(rng, "".join(rng.choices(parts, k=rng.randrange(6))).strip(), rng.choice(["stop", "length"]))
        for _ in range(2)
    ]
    fields = {} if seed % 3 == 0 else {"tools": [ADD], "parallel_tool_calls": seed % 3 == 1}
    call = parse(n=2, **fields)
    results = [result for result, _ in choices]
    stream, events = chat.Stream(call), []
    for index, (_, pieces) in enumerate(choices):
        events += [event for piece in pieces for event in stream.piece(index, piece)]
    events += stream.end(results)
    for index, choice in enumerate(chat.whole(call, results)["choices"]):
        mine = [data["choices"][0] for _, data in events if data["choices"][0]["index"] == index]
        text = "".join(each["delta"].get("content", "") for each in mine)
        calls = [made for each in mine for made in each["delta"].get("tool_calls", [])]
        numbered = [{"index": i, **made} for i, made in enumerate(choice["message"].get("tool_calls", []))]
        assert (text, calls) == (choice["message"]["content"] or "", numbered)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        output = results[index].output
        found = tools.parse(output.answer)[1] if fields else []
        assert len(calls) == (len(found) if seed % 3 == 1 else min(len(found), 1))
        assert choice["finish_reason"] == ("tool_calls" if found and output.answer_end == "stop" else output.answer_end)
        assert fields or choice["message"]["content"] == output.answer
    assert protocol.sse(events)


def test_a_server_answers_with_tools(server, engine):
    """Prompt and tokens are those of the offline engine; a random model calls nothing."""
    openai = pytest.importorskip("openai")
    from s1jax.config.sampling import SamplingParams
    from s1jax.engine.request import Request

    params = SamplingParams(max_thinking_tokens=8, max_answer_tokens=8, temperature=1.0, seed=3)
    messages = [USER, said("x"), result_of("x")]
    prompt = [
        Message("user", "Add."),
        Message("assistant", "", None, (ToolCall("add", '{"a":  "x"}'),)),
        Message("tool", "3"),
    ]
    requests = [Request(prompt, params=params, tools=offered) for offered in ([ADD], [])]
    counts = [len(engine.encoder.encode_one(each, params).prompt) for each in requests]
    think_start = len(engine.encoder.delimiters.think_start)
    assert counts[0] > counts[1] + 100  # the tools, in bytes
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as asked:
        more = {"thinking_token_budget": 8, "max_answer_tokens": 8}
        outputs = engine.generate(requests)
        for choice, want, count in zip(("auto", "none"), outputs, counts, strict=True):
            reply = asked.chat.completions.create(
                model="tiny", messages=messages, tools=[ADD], tool_choice=choice, seed=3, extra_body=more
            )
            message = reply.choices[0].message
            assert (message.content, message.reasoning) == (want.answer, want.thinking)
            assert message.tool_calls is None and reply.choices[0].finish_reason == want.answer_end
            assert reply.usage.prompt_tokens == count + think_start


def test_conversations_with_tools_are_not_handed_off():
    handoff = handoff_calls.HandoffCalls(object())
    for call in (parse(tools=[ADD], handoff="auto"), parse(USER, said("a"), result_of("a"), USER, handoff="ask")):
        with pytest.raises(ApiError, match="conversations with tools are not handed off") as error:
            handoff.check(call)
        assert error.value.param == "handoff" and not handoff.holds(call)


def test_tools_that_cannot_fit_are_refused_by_their_size(server):
    http = pytest.importorskip("httpx")
    long = {"type": "function", "function": {"name": "add", "description": "a" * 100_000}}
    body = {"messages": [USER], "tools": [long]}
    error = http.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]
    assert error["code"] == "context_length_exceeded" and "characters" in error["message"]
