"""Which fields of a prompt row are used, refused by name, or handed through."""

import pytest

from s1jax.config.sampling import SamplingParams
from s1jax.engine import fields
from s1jax.errors import UserError

DEFAULTS = SamplingParams(max_thinking_tokens=64, temperature=1.0)


def read(row):
    return fields.row_controls({"question": "q", **row}, DEFAULTS, "rows.jsonl:3")


@pytest.mark.parametrize(
    ("row", "control", "value"),
    [
        ({"thinking_token_budget": 5}, "max_thinking_tokens", 5),
        ({"thinking_budget": 5}, "max_thinking_tokens", 5),
        ({"thinking_budget_tokens": 0}, "max_thinking_tokens", 0),
        ({"reasoning_budget_tokens": 5, "max_thinking_tokens": 5}, "max_thinking_tokens", 5),
        ({"reasoning_effort": "none"}, "max_thinking_tokens", 0),
        ({"reasoning_effort": "low"}, "reasoning_effort", "low"),
        ({"enable_thinking": False}, "max_thinking_tokens", 0),
        ({"enable_thinking": True}, "max_thinking_tokens", 64),
        ({"num_return_sequences": 3}, "n", 3),
        ({"n": 3}, "n", 3),
        ({"stop": "Question:"}, "stop", ("Question:",)),
        ({"stop": ["a, b", "\n\n"]}, "stop", ("a, b", "\n\n")),
        ({"repetition_penalty": 2}, "repetition_penalty", 2.0),
        # None is not given, as tables write what a row lacks.
        (dict.fromkeys(("temperature", "stop", "thinking_budget", "reasoning_effort", "max_tokens")), "temperature", 1),
        ({"tools": [], "stop_sequences": [], "response_format": {}, "Speed": 3, "steps": 2, "template": "x"}, "n", 1),
        ({"thinking_tokens": 7, "thinking_end": "cut"}, "max_thinking_tokens", 64),  # an output that is sampled again
        ({"thinking": "a trace", "reasoning": "too", "level": "Level 5", "speed": 3, "answer": 4}, "n", 1),
    ],
)
def test_used(row, control, value):
    assert getattr(read(row), control) == value


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"max_tokens": 4},
            "max_tokens is not a setting of s1jax; write max_thinking_tokens, max_answer_tokens, or max_c",
        ),
        ({"max_new_tokens": 4}, "max_new_tokens is not a setting .* max_completion_tokens for both together"),
        ({"max_completion_tokens": -1}, "max_completion_tokens is -1; it must not be negative"),
        ({"Max-Tokens": 4}, "Max-Tokens is not a setting"),
        ({"until": ["a"]}, "until is not a setting of s1jax; write stop if it is meant, or give the field another"),
        ({"system_prompt": "a"}, "write system if"),
        ({"presence_penalty": 1}, "write repetition_penalty if"),
        ({"do_sample": True}, "write temperature, which is 0 for greedy decoding"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not a setting of s1jax; leave it out"),
        ({"chat_template_kwargs": {"thinking_budget": 5}}, "chat_template_kwargs is not a setting"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking is a group of settings.*max_thinking_tokens"),
        ({"reasoning": {"effort": "low"}}, "reasoning is a group of settings"),
        ({"reasoning_effort": 3}, "reasoning_effort is 3; it must be of type str"),
        ({"enable_thinking": 0}, "enable_thinking is 0"),
        ({"thinking_budget": 5, "max_thinking_tokens": 6}, "thinking_budget and max_thinking_tokens mean the same and"),
        ({"max_thinking_tokens": 6, "reasoning_effort": "none"}, "max_thinking_tokens and reasoning_effort mean the"),
        ({"thinking_budget": -1}, "max_thinking_tokens is -1"),
        ({"thinking_budget": "5"}, "max_thinking_tokens is '5'; it must be of type int"),
        ({"stops": ["a"]}, "stops is not a setting of s1jax; write stop if"),
        ({"thinking_budgets": 3}, "thinking_budgets is not a sampling parameter; write thinking_budget if"),
        ({"stop": ""}, "stop has an empty string"),
        ({"stop": 3}, "stop is 3; it must be a list"),
        ({"stop": [3]}, r"stop\[0\] is 3; it must be of type str"),
        ({"stop": ["a"] * 65}, "stop has 65 strings; give at most 64"),
        ({"n": 0}, r"n is 0; it must lie in \[1, 10000\]"),
        ({"n": 2.0}, "n is 2.0; it must be of type int"),
        ({"n": 2, "temperature": 0}, "n is 2, but with temperature 0 all samples of a prompt are the same"),
        ({"wait_": "Hm"}, "wait_ is not a sampling parameter; write wait if"),
        ({"thinking": False}, "thinking is False, which sets no number of tokens; write max_thinking_tokens"),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0.0; it must lie in \[0.01, 100\]"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
    ],
)
def test_refused_by_name(row, said):
    with pytest.raises(UserError, match=f"rows.jsonl:3.*{said}"):
        read(row)


def test_no_known_field_is_taken_for_a_misspelt_one():
    assert not any(fields._meant(name) for name in fields._KNOWN)


def test_every_setting_of_other_programs_is_used_or_refused():
    """The fields that a row of an OpenAI client, of vLLM or of transformers had, and that were once ignored."""
    row = {
        "question": "What is 12 plus 30?", "system": "Answer in French.", "repetition_penalty": 1.3, "max_tokens": 4,
        "stop": ["Question:"], "n": 4, "thinking_budget": 5, "max_new_tokens": 4,
    }  # fmt: skip
    with pytest.raises(UserError, match="row: max_tokens is not a setting of s1jax"):
        fields.row_controls(row, DEFAULTS, "row")
    del row["max_tokens"], row["max_new_tokens"]
    controls = fields.row_controls(row, DEFAULTS, "row")
    assert (controls.repetition_penalty, controls.stop, controls.n) == (1.3, ("Question:",), 4)
    assert controls.max_thinking_tokens == 5


# As the clients of OpenAI, Anthropic, Google, vLLM, SGLang, Ollama, llama.cpp and transformers write them.
FOREIGN = """
maxTokens stopSequences stop_sequence stop_token Stop N num_samples thinking_tokens no_thinking repeat_penalty
num_predict sampling_seed random_seed eos_token_id penalty_alpha min_new_tokens temp top_a mirostat logprobs guided_json
response_format tools truncate_prompt_tokens add_special_tokens skip_special_tokens developer system_text Max-Tokens
MAX_NEW_TOKENS maxOutputTokens candidateCount topP topK thinkingBudget minP Seed Temperature repetition-penalty System
Wait numWaits toolChoice
"""


@pytest.mark.parametrize("name", FOREIGN.split())
def test_other_spellings_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"rows.jsonl:3: {name} is (not a setting of s1jax|not a sampling parameter); "):
        read({name: 3})


def test_what_is_handed_through_is_listed():
    rows = [{"question": "q", "level": 3, "n": 2, "wait": "Hm"}, {"prompt_ids": [1], "answer": "4", "level": 4}]
    assert fields.unused(rows) == ["level", "answer"]
    assert fields.unused([{"question": "q", "system": "s", "thinking_budget": 3, "enable_thinking": False}]) == []
