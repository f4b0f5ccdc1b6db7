"""The stream helpers of OpenAI's and Anthropic's clients, over a transport without a server."""

import json
import random

import pytest

from s1jax.serve import anthropic, chat, protocol, responses
from s1jax.serve.protocol import Defaults
from s1jax.serve.reader import Reader
from tests.serve import replies

APIS = {"/v1/messages": anthropic, "/v1/responses": responses, "/v1/chat/completions": chat}
DEFAULTS = Defaults("s1", 10_000)
USER = [{"role": "user", "content": "a"}]


def client(make, result, pieces, base: str, defaults=DEFAULTS):
    """A client whose requests are answered with one result."""

    def answer(request):
        api = APIS[request.url.path]
        call = api.read(Reader(json.loads(request.content)), defaults)
        if not call.stream:
            return http.Response(200, json=api.whole(call, [result]))
        stream = api.Stream(call)
        events = stream.begin() + [event for piece in pieces for event in stream.piece(0, piece)]
        wire = protocol.sse(events + stream.end([result])) + stream.done
        return http.Response(200, content=wire, headers={"content-type": "text/event-stream"})

    for name in ("httpx2", "httpx"):  # which of them a client uses is a matter of its version
        try:
            http = pytest.importorskip(name)
            transport = http.Client(transport=http.MockTransport(answer))
            return make(api_key="none", base_url=f"http://localhost{base}", http_client=transport)
        except (TypeError, pytest.skip.Exception):
            continue
    pytest.skip("no HTTP library that the client takes")


@pytest.mark.parametrize("seed", range(5))
def test_openai_puts_streams_together(seed):
    openai = pytest.importorskip("openai")
    result, pieces = replies.result(random.Random(seed))
    output, asked = result.output, client(openai.OpenAI, result, pieces, "/v1")
    cut = output.answer_end == "length"
    assert asked.responses.create(model="s1", input="a").output_text == output.answer
    with asked.responses.stream(model="s1", input="a", reasoning={"effort": "low"}) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == output.answer
        if not cut:
            assert stream.get_final_response().output_text == output.answer
    options = {"include_usage": True}
    try:
        with asked.chat.completions.stream(model="s1", messages=USER, stream_options=options) as stream:
            list(stream)
            final = stream.get_final_completion()
    except openai.LengthFinishReasonError:
        assert cut
        return
    assert not cut and (final.choices[0].message.content or "") == output.answer
    assert final.usage.total_tokens == result.prompt_tokens + result.completion_tokens


@pytest.mark.parametrize("seed", range(5))
def test_anthropic_puts_streams_together(seed):
    released = pytest.importorskip("anthropic")
    result, pieces = replies.result(random.Random(seed))
    asked = client(released.Anthropic, result, pieces, "")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    whole = asked.messages.create(model="s1", max_tokens=2000, messages=USER, thinking=thinking)
    with asked.messages.stream(model="s1", max_tokens=2000, messages=USER, thinking=thinking) as stream:
        assert "".join(stream.text_stream) == result.output.answer
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert [block.type for block in whole.content if block.type == "thinking"] == ["thinking"] * bool(
        result.output.thinking
    )
    assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )
