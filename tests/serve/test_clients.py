"""Released clients work unchanged: openai-python, litellm, langchain-openai."""

import json
import shutil
import subprocess

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine.request import Request
from s1jax.text.messages import Message

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # litellm's own
openai = pytest.importorskip("openai")

USER = [{"role": "user", "content": "Héllo 😀?"}]
BUDGET = {"thinking_token_budget": 24, "num_waits": 1, "wait": "Wait", "max_answer_tokens": 12}
PARAMS = SamplingParams(max_thinking_tokens=24, num_waits=1, wait="Wait", max_answer_tokens=12, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def want(engine):
    return engine.generate([Request([Message("user", USER[0]["content"])], params=PARAMS)])[0]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_chat(client, want):
    reply = client.chat.completions.create(model="tiny", messages=USER, seed=5, temperature=1, extra_body=BUDGET)
    message = reply.choices[0].message
    assert (message.content, message.reasoning, message.reasoning_content) == (want.answer, *[want.thinking] * 2)
    assert reply.usage.completion_tokens_details.reasoning_tokens == want.thinking_tokens
    assert reply._request_id and client.models.list().data[0].id == "tiny"


def test_openai_chat_stream(client, want):
    stream = client.chat.completions.create(
        model="tiny", messages=USER, seed=5, temperature=1, extra_body=BUDGET, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = stream
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == want.answer
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == want.thinking
    assert last.choices == [] and last.usage.completion_tokens_details.reasoning_tokens == want.thinking_tokens


def test_openai_errors(client):
    with pytest.raises(openai.BadRequestError, match="thinking_token_budget"):
        client.chat.completions.create(model="tiny", messages=USER, extra_body={"thinking_token_budget": 1.5})
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.chat.completions.create(model="gpt-5", messages=USER)


def test_openai_responses(client, want):
    fields = {"model": "tiny", "input": USER, "temperature": 1, "extra_body": {**BUDGET, "seed": 5}}
    reply = client.responses.create(**fields)
    assert reply.output_text == want.answer and reply.output[0].content[0].text == want.thinking
    assert reply.usage.output_tokens_details.reasoning_tokens == want.thinking_tokens
    events = list(client.responses.create(**fields, stream=True))
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert ("".join(texts), "".join(thoughts)) == (want.answer, want.thinking)


@pytest.mark.parametrize("stream", [False, True])
def test_litellm(server, want, stream, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it downloads one
    litellm = pytest.importorskip("litellm")
    reply = litellm.completion(
        model="hosted_vllm/tiny", api_base=f"{server.url}/v1", api_key="none", messages=USER, seed=5, temperature=1,
        stream=stream, extra_body=BUDGET,
    )  # fmt: skip
    if stream:
        deltas = [chunk.choices[0].delta for chunk in reply]
        found = ["".join(getattr(d, name, None) or "" for d in deltas) for name in ("content", "reasoning_content")]
    else:
        found = [reply.choices[0].message.content, reply.choices[0].message.reasoning_content]
        assert reply.usage.completion_tokens_details.reasoning_tokens == want.thinking_tokens
    assert found == [want.answer, want.thinking]


def test_langchain(server, want):
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key="none", seed=5, temperature=1, extra_body=BUDGET
    )
    assert model.invoke(USER).content == want.answer
    assert "".join(chunk.content for chunk in model.stream(USER)) == want.answer


def test_lm_eval_chat(server, engine):
    """`local-chat-completions`: its answers are those of the engine, its budget in gen_kwargs is kept."""
    harness = pytest.importorskip("lm_eval.models.openai_completions")
    instance = pytest.importorskip("lm_eval.api.instance")
    model = harness.LocalChatCompletion(
        base_url=f"{server.url}/v1/chat/completions", model="tiny", tokenizer_backend=None, num_concurrent=1
    )
    kwargs = {"until": ["\n"], "max_gen_toks": 60, "thinking_token_budget": 9}
    context = model.apply_chat_template([{"role": "user", "content": "q"}])
    request = instance.Instance("generate_until", {}, (context, kwargs), 0)
    params = SamplingParams(max_thinking_tokens=9, max_answer_tokens=60, max_completion_tokens=60, stop=("\n",))
    output = engine.generate([Request([Message("user", "q")], params=params)])[0]
    assert model.generate_until([request]) == [output.answer]


def test_lm_eval_log_likelihoods(server, engine):
    """`local-completions` with our tokenizer: its scores are those of the engine."""
    harness = pytest.importorskip("lm_eval.models.openai_completions")
    instance = pytest.importorskip("lm_eval.api.instance")
    from s1jax.engine import score

    model = harness.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model="tiny", tokenizer_backend="remote", tokenized_requests=True
    )
    texts = [("a question", " one"), ("a question", " two"), ("b", "c")]
    found = model.loglikelihood([instance.Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)])
    encode = engine.model.tokenizer.encode
    pairs = [(encode(context), encode(context + text)[len(encode(context)) :]) for context, text in texts]
    want = score.log_likelihoods(engine.model.params, engine.model.config, pairs)
    for (total, greedy), (want_total, want_greedy) in zip(found, want, strict=True):
        assert total == pytest.approx(want_total, abs=1e-2) and greedy == want_greedy


def test_curl_stream(server, want):
    """`curl -N`: one event a line, text as it comes, [DONE] last."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = {"messages": USER, "seed": 5, "temperature": 1, "stream": True, **BUDGET}
    done = subprocess.run(
        ["curl", "-sSN", "--noproxy", "*", f"{server.url}/v1/chat/completions", "-d", json.dumps(body)],
        capture_output=True, text=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    *events, end = [line for line in done.stdout.split("\n") if line and not line.startswith(":")]
    assert done.returncode == 0 and end == "data: [DONE]"
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == want.thinking
    assert "".join(delta.get("content") or "" for delta in deltas) == want.answer
