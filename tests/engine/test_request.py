"""Prompts as text, messages and requests; what an output holds; new weights in an engine."""

import dataclasses
import json

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows
from s1jax.engine.encoding import Encoder
from s1jax.engine.engine import Engine
from s1jax.engine.request import Output, Request
from s1jax.errors import UserError
from s1jax.text import chat, conversation
from s1jax.text.messages import Message
from s1jax.text.tokenizer import Tokenizer
from s1jax.text.tools import ToolCall
from tests import byte_tokenizer
from tests.engine.test_formats import character_tokenizer

QUESTION = "Make 21 from 3 7 1"
FEW = SamplingParams(max_thinking_tokens=8, max_answer_tokens=4, temperature=5.0, seed=5)


@pytest.fixture(scope="module")
def engine():
    return Engine("package:countdown_base", slots=4)


def test_a_text_its_message_and_its_request_are_one_prompt(engine):
    ids = engine.encoder.encode_one(Request(QUESTION), FEW).prompt
    same = [QUESTION, [Message("user", QUESTION)], Request(QUESTION), Request(prompt_ids=ids)]
    found = [engine.generate([prompt], FEW)[0] for prompt in same]
    assert all(isinstance(output, Output) for output in found)
    assert len({output.token_ids for output in found}) == 1 and len({output.answer for output in found}) == 1
    (row,) = rows.generate(engine, [{"question": QUESTION}], FEW)
    assert rows.record({"question": QUESTION}, found[0]) == row | {"logprob": found[0].logprob}


def test_the_noise_of_a_request_depends_on_its_place_unless_it_has_params(engine):
    own = Request(QUESTION, params=FEW)
    outputs = engine.generate([QUESTION, QUESTION, own, Request(QUESTION, index=1)], FEW)
    ids = [output.token_ids for output in outputs]
    assert ids[0] == ids[2] and ids[1] == ids[3] and ids[0] != ids[1]
    assert [output.params.seed for output in outputs[::2]] == [5, 5] and outputs[1].params.seed != 5


def test_every_token_has_its_log_probability(engine):
    several = dataclasses.replace(FEW, n=2, num_waits=1, stop=("1",))
    for output in engine.generate([QUESTION], several):
        assert len(output.logprobs) == len(output.forced) == len(output.token_ids)
        assert all((logprob == 0) == forced for logprob, forced in zip(output.logprobs, output.forced, strict=True))
        assert sum(output.logprobs) == pytest.approx(output.logprob, abs=1e-4)
        assert output.num_samples == 2 and output.params.n == 1 and output.params.wait == "Wait"


def test_an_engine_decodes_the_vocabulary_once(engine, monkeypatch):
    """Not again for another call, nor for another wait string."""
    (before,) = engine.generate([QUESTION], FEW)
    monkeypatch.setattr(chat, "delimiters", None)
    (after,) = engine.generate([QUESTION], dataclasses.replace(FEW, wait="check"))
    assert after.params.wait == "check" and after.token_ids == before.token_ids


@pytest.fixture(scope="module")
def chatting(engine):
    """The same weights with a format that has turns."""
    return Engine(dataclasses.replace(engine.model, chat=chat.FORMATS["countdown"]), slots=4)


def test_a_conversation_is_sampled_and_streamed_like_its_token_ids(chatting):
    messages, before = [], ()
    for most in (8, 5, 0):
        messages.append(Message("user", QUESTION))
        params = SamplingParams(max_thinking_tokens=most, max_answer_tokens=6)
        ids = conversation.encode(chatting.model.tokenizer, chatting.model.chat, messages)
        assert tuple(ids[: len(before)]) == before
        outputs = chatting.generate([messages, Request(prompt_ids=ids)], params)
        *_, last = chatting.stream_tokens(messages, params)
        assert outputs[0].token_ids == outputs[1].token_ids == last.output.token_ids
        assert outputs[0].thinking_tokens == most
        messages.append(Message("assistant", outputs[0].answer, thinking=outputs[0].thinking))
        # These weights write no newline after think_start, as trained ones do, so the texts part there.
        before = (*ids, *outputs[0].token_ids[:2])


def test_the_system_prompt_of_a_conversation_wins_over_that_of_the_call(engine, tmp_path):
    byte_tokenizer.save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    encoder = Encoder(dataclasses.replace(engine.model, tokenizer=tokenizer, chat=chat.FORMATS["s1_plain"]))
    turns = [Message("user", "q"), Message("assistant", "a", thinking="t"), Message("user", "r")]
    plain, call = (encoder.encode_one(Request(turns), FEW, system=system).prompt for system in ("", "no"))
    assert encoder.encode_one(Request(turns, system="no"), FEW).prompt == call != plain
    for role in ("system", "developer"):
        own = Request([Message(role, "so"), *turns])
        want = encoder.encode_one(Request(turns, system="so"), FEW).prompt
        assert encoder.encode_one(own, FEW, system="no").prompt == want and encoder.system(own, "no") == "so"


def test_tools_of_a_request(engine):
    model = dataclasses.replace(engine.model, tokenizer=character_tokenizer(), chat=chat.FORMATS["think"])
    encoder, tool = Encoder(model), {"type": "function", "function": {"name": "add"}}
    messages = [Message("user", "q"), Message("assistant", "", tool_calls=(ToolCall("add"),)), Message("tool", "")]
    encoded = encoder.encode_one(Request(messages, tools=[tool]), FEW, system="Be brief.")
    text = encoder.decode(encoded.prompt)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n") and json.dumps(tool) in text
    assert text.endswith("<tool_response>\n\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (QUESTION, "prompts is 'Make .*; give a list of prompts"),
        (Request(QUESTION), "prompts is Request.*; give a list of prompts"),
        ([{"question": QUESTION}], r"prompt 0 is \{'question.*s1jax.engine.rows.generate"),
        ([QUESTION, ""], "prompt 1: the prompt is empty"),
        ([3], "prompt 0: the prompt is 3; give a text or a list of s1jax.Message"),
        ([Request()], "prompt 0 must have exactly one of prompt and prompt_ids"),
        ([Request(QUESTION, name="mine", system=3)], "mine: system is 3; it must be a string"),
        (
            [[Message("user", "a"), Message("assistant", "b"), Message("user", "c")]],
            "prompt 0: .* that separates turns",
        ),
        ([[Message("user", "a"), Message("assistant", "b")]], "prompt 0: the last message is that of the role assist"),
        ([[Message("system", "a")]], "prompt 0: the prompt is empty"),
        ([Request([Message("system", "a"), Message("user", "b")], system="c")], "system is given twice"),
        ([Request(QUESTION, tools=[{"name": "f"}])], "prompt 0: .*'Final', has no place for tools; leave out tools"),
        ([Request(prompt_ids=[1], tools=[{"name": "f"}])], "prompt 0: tools go with messages, not with prompt_ids"),
        ([Request(prompt_ids=[1.5])], "prompt 0: prompt_ids must be a list of whole numbers"),
    ],
)
def test_bad_prompts(engine, prompts, said):
    with pytest.raises(UserError, match=said):
        engine.generate(prompts, FEW)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"role": "bot", "content": "a"}, "role 'bot'; choose system, developer, user, assistant, tool"),
        ({"role": "user", "content": 3}, "content 3; it must be a string"),
        ({"role": "user", "content": "a", "thinking": "b"}, "only those of the assistant may"),
    ],
)
def test_bad_messages(fields, said):
    with pytest.raises(UserError, match=said):
        Message(**fields)
    assert Message("assistant", "a", thinking="b").thinking == "b"
