import json
import random

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.serve import chat, protocol, settings
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader, loads
from s1jax.text.messages import Message
from tests.serve import replies

DEFAULTS = Defaults(model="s1", context_length=10_000, aliases=("other",))
BODY = {"model": "s1", "messages": [{"role": "user", "content": "What is 1+1?"}]}


def parse(**fields):
    return chat.read(Reader({**BODY, **fields}), DEFAULTS)


def refusal(**fields) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse(**fields)
    assert error.value.status in (400, 404)
    return error.value


def test_a_plain_request():
    call = parse()
    assert call.prompts == ((Message("user", "What is 1+1?"),),)
    assert (call.params.temperature, call.params.n, call.stream, call.ignored) == (1.0, 1, False, ())
    assert call.id.startswith("chatcmpl-") and call.id != parse().id
    assert call.params.seed != parse().params.seed  # drawn


def test_fields_become_sampling_parameters():
    call = parse(
        temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, seed=2**40 + 3, stop="END", n=3, repetition_penalty=1.1,
        max_answer_tokens=7, thinking_token_budget=64, priority=-2, cache_salt="k", logprobs=True, handoff="never",
        max_cost=0.5,
    )  # fmt: skip
    assert call.params == SamplingParams(
        temperature=0.5, top_p=0.9, min_p=0.1, seed=3, stop=("END",), n=3, repetition_penalty=1.1, max_answer_tokens=7,
        max_thinking_tokens=64,
    )  # fmt: skip
    assert (call.priority, call.salt, call.logprobs, call.handoff, call.max_cost) == (-2, "k", True, "never", 0.5)
    assert parse(temperature=0).params.temperature == 0
    assert Defaults("m", 9, SamplingParams(temperature=0.0)).params.temperature == 0


def test_bounds_of_the_whole_reply():
    assert parse(max_tokens=50).max_completion_tokens == parse(max_completion_tokens=50).max_completion_tokens == 50
    assert parse(max_tokens=50, max_completion_tokens=50).params.max_answer_tokens == 50
    assert parse().max_completion_tokens == 0
    assert refusal(max_tokens=50, max_completion_tokens=51).param == "max_tokens"
    assert refusal(max_tokens=0).param == "max_tokens"


@pytest.mark.parametrize("name", [n for n in settings.REFUSED if n not in ("logprobs", "n")])
def test_what_is_not_done_is_refused_by_name(name):
    values, _ = settings.REFUSED[name]
    assert refusal(**{name: {"type": "json_object"}}).param == name
    for value in (*values, None):
        assert parse(**{name: value}).ignored == ()


def test_harmless_fields_are_listed_as_ignored():
    harmless = dict.fromkeys(settings.IGNORED, "x")
    assert set(parse(**harmless).ignored) == set(settings.IGNORED)
    assert parse(chat_template_kwargs={"tools_in_user": 1}, my_field=1, none=None).ignored == (
        "my_field", "chat_template_kwargs.tools_in_user",
    )  # fmt: skip
    message = {"role": "user", "content": "a", "name": "Ann"}
    assert parse(messages=[message]).ignored == ("messages[].name",)
    assert parse(**{"漢,\n": 1}).ignored == ("\\u6f22,\\n",)


@pytest.mark.parametrize(
    "name,meant",
    [
        ("max_token", "max_tokens"), ("thinking_tokens_budget", "thinking_token_budget"), ("maxTokens", "max_tokens"),
        ("Temperature", "temperature"), ("num_wait", "num_waits"), ("stream-options", "stream_options"),
        ("stops", "stop"), ("seeds", "seed"),
    ],
)  # fmt: skip
def test_a_near_miss_is_refused_with_what_is_meant(name, meant):
    assert f"write {meant} " in refusal(**{name: 1}).message


def test_a_near_miss_inside_a_group_is_refused():
    assert refusal(chat_template_kwargs={"enable_thinkin": False}).param == "chat_template_kwargs.enable_thinkin"
    assert refusal(reasoning={"efort": "low"}).param == "reasoning.efort"


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"temperature": "1"}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"), ({"n": 17}, "n"), ({"n": 2, "temperature": 0}, "n"), ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 65}, "stop"), ({"stop": [1]}, "stop[0]"), ({"seed": -1}, "seed"), ({"seed": 1.0}, "seed"),
        ({"stream": 1}, "stream"), ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"), ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "reasoning": "b"}]}, "messages[0]"),
        ({"think_longer": {}}, "think_longer.id"), ({"think_longer": {"id": "chatcmpl-1"}}, "messages"),
        ({"logprobs": 1}, "logprobs"), ({"handoff": "yes"}, "handoff"), ({"max_cost": -1}, "max_cost"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_path(fields, param):
    assert refusal(**fields).param == param


def test_models():
    assert parse(model="").model == parse(model=None).model == "s1"
    assert parse(model="other").model == "other"
    error = refusal(model="gpt-4o")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_conversations():
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "d", "tool_calls": [], "refusal": None},
        {"role": "user", "content": "e"},
    ]
    (found,) = parse(messages=turns).prompts
    assert found == (Message("system", "Be brief."), Message("user", "ab"), Message("assistant", "c", "d"),
                     Message("user", "e"))  # fmt: skip


def test_thinking_longer():
    call = chat.read(Reader({"think_longer": {"id": "chatcmpl-1"}, "messages": [], "num_waits": 2}), DEFAULTS)
    assert (call.think_longer, call.prompts, call.num_choices, call.given["num_waits"]) == ("chatcmpl-1", (), 1, 2)


def test_random_bodies_raise_nothing_but_a_4xx():
    refused = replies.fuzz(chat, DEFAULTS, BODY, 0, 5000, ("max_token", "foo", "\ud800"))
    assert 1000 < refused < 5000


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000]
)
def test_a_body_that_is_no_json_object_is_refused(data):
    with pytest.raises(ApiError) as error:
        loads(data)
    assert error.value.status == 400


def answered(seed: int, n: int = 2, **fields):
    """A call with random results, and their pieces."""
    rng = random.Random(seed)
    call = parse(n=n, stream=True, **fields)
    return call, [replies.result(rng) for _ in range(n)]


def events(call, found) -> list[dict]:
    """The chunks of a stream, after a round trip over the wire."""
    stream = chat.Stream(call)
    written = stream.begin()
    for index, (_, pieces) in enumerate(found):
        for piece in pieces:
            written += stream.piece(index, piece)
    written += stream.end([result for result, _ in found])
    wire = (protocol.sse(written) + stream.done).decode("ascii")
    lines = [line for line in wire.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("seed", range(40))
def test_the_pieces_of_a_stream_are_the_whole_reply(seed):
    call, found = answered(seed, logprobs=True)
    whole, chunks = chat.whole(call, [result for result, _ in found]), events(call, found)
    for choice in whole["choices"]:
        deltas = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        for name in ("content", "reasoning", "reasoning_content"):
            assert "".join(c["delta"].get(name, "") for c in deltas) == choice["message"][name]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] for c in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert {
            name: deltas[-1][name] for name in ("finish_reason", "thinking", "seed", "stop_reason", "logprobs")
        } == {name: choice[name] for name in ("finish_reason", "thinking", "seed", "stop_reason", "logprobs")}
        output = found[choice["index"]][0].output
        texts = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert (
            set(texts) <= {"t5", "t6", "t11"}
            and texts.count("t11") + (output.stop_reason is None) * (output.answer_end == "stop")
            == output.answer_tokens
        )
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)


@pytest.mark.parametrize("seed", range(5))
def test_usage_counts_every_token_once(seed):
    call, found = answered(seed, stream_options={"include_usage": True})
    results = [result for result, _ in found]
    usage = chat.whole(call, results)["usage"]
    assert usage["prompt_tokens"] == results[0].prompt_ids + 2
    assert usage["completion_tokens"] == sum(len(r.output.token_ids) - 2 for r in results)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    thinking = [c["thinking"]["tokens"] for c in chat.whole(call, results)["choices"]]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == sum(thinking)
    *chunks, last = events(call, found)
    assert last["choices"] == [] and last["usage"] == usage
    assert all("usage" not in chunk for chunk in chunks)


def test_thinking_that_is_not_sent_is_counted():
    call, found = answered(3, include_reasoning=False)
    assert "reasoning" not in json.dumps([chat.whole(call, [r for r, _ in found])["choices"], events(call, found)])
    assert chat.whole(call, [r for r, _ in found])["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_forced_text_is_marked_and_one_name_may_be_dropped():
    defaults = Defaults("s1", 100, reasoning_names=("reasoning",))
    call = chat.read(Reader({**BODY, "stream": True}), defaults)
    rng = random.Random(1)
    result, pieces = replies.result(rng)
    stream = chat.Stream(call)
    for piece in pieces:
        for _, chunk in stream.piece(0, piece):
            delta = chunk["choices"][0]["delta"]
            assert delta.get("forced", False) == piece.forced and "reasoning_content" not in delta
    assert "reasoning_content" not in chat.whole(call, [result])["choices"][0]["message"]


def test_an_error_in_a_stream_has_all_fields():
    call, _ = answered(0)
    ((name, data),) = chat.Stream(call).fail(ApiError("broken", None, "server_error", "server_error", 500))
    assert (name, set(data["error"])) == ("", {"message", "type", "param", "code"})


@pytest.mark.parametrize("seed", range(5))
def test_openai_reads_replies_and_chunks(seed):
    types = pytest.importorskip("openai.types.chat")
    call, found = answered(seed, logprobs=True, stream_options={"include_usage": True})
    reply = types.ChatCompletion.model_validate(chat.whole(call, [r for r, _ in found]), strict=True)
    assert reply.choices[0].message.reasoning == found[0][0].output.thinking
    for chunk in events(call, found):
        types.ChatCompletionChunk.model_validate(chunk, strict=True)
