import json
import random

import pytest

from s1jax.serve import completions
from s1jax.serve.protocol import ApiError, Defaults, Echo
from s1jax.serve.reader import Reader
from tests.serve import replies

DEFAULTS = Defaults(model="s1", context_length=10_000, max_prompts=4)
SCORE = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}


def parse(prompt="2+2=", **fields):
    return completions.read(Reader({"prompt": prompt, **fields}), DEFAULTS)


@pytest.mark.parametrize(
    "prompt,parsed",
    [
        ("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)  # fmt: skip
def test_prompts_are_texts_or_ids(prompt, parsed):
    call = parse(prompt, n=2)
    assert call.prompts == parsed and call.num_choices == 2 * len(parsed)
    requests = call.requests(lambda text: [ord(letter) for letter in text])
    assert [list(r.prompt_ids) for r in requests] == [
        [ord(letter) for letter in each] if isinstance(each, str) else list(each) for each in parsed
    ]
    assert all(r.params == call.params for r in requests)


@pytest.mark.parametrize(
    "fields,param",
    [
        ({"prompt": None}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"), ({"prompt": [1, True]}, "prompt[1]"), ({"prompt": ["a", 1.5]}, "prompt[1]"),
        ({"prompt": [1, -1]}, "prompt[1]"), ({"logprobs": 1}, "logprobs"), ({"logprobs": True}, "logprobs"),
        ({"logprobs": 2}, "logprobs"), ({"echo": True, "stream": True}, "echo"), ({"suffix": "a"}, "suffix"),
        ({"best_of": 2}, "best_of"), ({**SCORE, "max_tokens": 2}, "max_tokens"), ({**SCORE, "n": 2}, "n"),
        ({**SCORE, "temperature": 1}, "temperature"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, None),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_path(fields, param):
    if param is None:
        assert parse(**fields).ignored == ("messages",)
        return
    with pytest.raises(ApiError) as error:
        parse(**fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_random_bodies_raise_nothing_but_a_4xx():
    refused = replies.fuzz(completions, DEFAULTS, {"prompt": "a"}, 1, 3000)
    assert 500 < refused < 3000


@pytest.mark.parametrize("seed", range(10))
def test_the_pieces_of_a_stream_are_the_whole_reply(seed):
    rng = random.Random(seed)
    call = parse(["a", "b"], n=2, stream=True, logprobs=0, stream_options={"include_usage": True})
    found = [replies.result(rng) for _ in range(4)]
    results = [result for result, _ in found]
    whole, stream = completions.whole(call, results), completions.Stream(call)
    events = stream.begin()
    for index, (_, pieces) in enumerate(found):
        for piece in pieces:
            events += stream.piece(index, piece)
    *chunks, last = [json.loads(json.dumps(data)) for _, data in events + stream.end(results)]
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        for name in ("text", "reasoning", "reasoning_content"):
            assert "".join(part.get(name, "") for part in parts) == choice[name]
        assert parts[-1]["logprobs"] == choice["logprobs"] and parts[-1]["finish_reason"] == choice["finish_reason"]
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens"] == results[0].prompt_tokens + results[2].prompt_tokens
    types = pytest.importorskip("openai.types")
    types.Completion.model_validate(whole, strict=True)
    for chunk in [*chunks[-4:], last]:  # before these finish_reason is null, as OpenAI has it and its types do not
        types.Completion.model_validate(chunk, strict=True)


def test_a_scored_prompt_reads_as_the_harness_expects():
    """lm-evaluation-harness skips the first `ctxlen` entries and the last, and compares each with the best one."""
    call = parse([[7, 8, 9]], **SCORE)
    assert call.only_prompt
    echo = Echo(
        text="abc", tokens=("a", "b", "c"), logprobs=(None, -0.5, -2.0), top=(None, ("b", -0.5), ("x", -0.1)),
        next=("d", -0.3),
    )  # fmt: skip
    result, _ = replies.result(random.Random(0))
    result = result.__class__(**{**vars(result), "echo": echo})
    (choice,) = completions.whole(call, [result])["choices"]
    assert choice["text"] == "abcd"
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None, -0.5, -2.0, -0.3] and logprobs["text_offset"] == [0, 1, 2, 3]
    tops = logprobs["top_logprobs"][1:-1]
    greedy = [own == max(top.values()) for own, top in zip(logprobs["token_logprobs"][1:-1], tops, strict=True)]
    assert greedy == [True, False]
    harness = pytest.importorskip("lm_eval.models.openai_completions")
    parsed = harness.LocalCompletionsAPI.parse_logprobs({"choices": [choice]}, tokens=[[7, 8, 9]], ctxlens=[1])
    assert parsed == [(-2.5, False)]


def test_an_echoed_prompt_stands_before_the_answer():
    call = parse("abc", echo=True)
    result, _ = replies.result(random.Random(0))
    result = result.__class__(**{**vars(result), "echo": Echo("abc")})
    assert completions.whole(call, [result])["choices"][0]["text"] == "abc" + result.output.answer
