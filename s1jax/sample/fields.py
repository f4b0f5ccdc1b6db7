"""Which fields of a prompt row are settings, by their own or by another program's name.

A field of a row is one of three things: a setting, which is used; a setting of another program that this one has not or
means otherwise, which is refused with the name of the field to use; anything else, which is handed through to the
output. So nothing that changes how vLLM, transformers or an OpenAI client would sample is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any

from s1jax.config import Controls, InputError, from_dict, to_dict
from s1jax.sample.generate import Sample

CONTROLS = tuple(field.name for field in dataclasses.fields(Controls))
# Fields that an output has beside those of its row.
OUTPUTS = (
    "thinking", "answer", "controls", "fingerprint", "sample_index",
    *(field.name for field in dataclasses.fields(Sample)),
)  # fmt: skip

# Other names of a control, where the meaning is the same: vLLM, SGLang and DashScope, llama.cpp (twice), transformers.
ALIASES = {
    "thinking_token_budget": "max_thinking_tokens",
    "thinking_budget": "max_thinking_tokens",
    "thinking_budget_tokens": "max_thinking_tokens",
    "reasoning_budget_tokens": "max_thinking_tokens",
    "num_return_sequences": "n",
}
# Values with which these fields mean "no thinking": a maximum of 0 thinking tokens.
_NO_THINKING = {"reasoning_effort": "none", "enable_thinking": False}

_BUDGETS = "max_thinking_tokens for thinking and max_answer_tokens for the answer"
_THINKING = 'max_thinking_tokens (or "none" here for no thinking)'
# Settings of other programs -> what to write instead.
_REFUSED = {
    **dict.fromkeys(("max_tokens", "max_new_tokens", "max_completion_tokens", "max_output_tokens", "max_gen_toks",
                     "max_length"), _BUDGETS),  # they bound thinking and answer together
    **dict.fromkeys(("min_tokens", "min_new_tokens", "min_length"), "min_thinking_tokens"),
    "reasoning_budget": "max_thinking_tokens",  # -1, its usual value, means that there is no limit
    "budget_tokens": "max_thinking_tokens",
    **dict.fromkeys(("stops", "stop_sequences", "stop_strings", "stop_words", "until"), "stop"),
    **dict.fromkeys(("system_prompt", "system_message", "system_instruction"), "system"),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "no_repeat_ngram_size"), "repetition_penalty"),
    "do_sample": "temperature, which is 0 for greedy decoding",
    "best_of": "n",
    **dict.fromkeys(("stop_token_ids", "bad_words", "ignore_eos", "logit_bias", "num_beams", "use_beam_search",
                     "length_penalty", "typical_p", "chat_template_kwargs", "custom_params", "extra_body",
                     "sampling_params", "generation_config", "generation_kwargs"), ""),
}  # fmt: skip
# Groups that other programs put a budget into; as texts they are columns of data like others.
_GROUPS = ("thinking", "reasoning")

# `speed` is a name of its own, and looks like `seed`.
_KNOWN = {
    "question", "speed", "prompt_ids", "wait", "system", *CONTROLS, *ALIASES, *_NO_THINKING, *_REFUSED, *OUTPUTS,
    *(f"input_{name}" for name in OUTPUTS),
}  # fmt: skip
_CLOSE = 0.85  # of 1: a letter more or less in the shortest of the controls' names


def row_controls(row: Mapping[str, Any], defaults: Controls, name: str) -> Controls:
    """Returns `defaults` with the controls that the row has of its own.

    A field whose value is None is not given, as vLLM has it and as tables write what a row lacks.

    Args:
      row: its fields; those that are no settings are not looked at.
      defaults: of what the row does not say.
      name: what messages call the row.

    Raises:
      InputError: a control has a bad value or two names with different values, a field is a setting of another program
        that is not used here, or has nearly the name of a control.
    """
    own: dict[str, Any] = {}
    for key, value in row.items():
        control, value = _control(key, value, name)
        if not control or value is None:
            continue
        if control == "stop" and isinstance(value, str):
            value = [value]
        if control in own and own[control] != value:
            other = next(k for k in row if k != key and _control(k, row[k], name)[0] == control)
            raise InputError(f"{name}: {other} and {key} mean the same and differ; keep one of them.")
        own[control] = value
    if not own:
        return defaults
    try:
        return from_dict(Controls, {**to_dict(defaults), **own}, name)
    except InputError as error:
        raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from None


def _control(key: Any, value: Any, name: str) -> tuple[str, Any]:
    """Returns the control that a field is and its value; an empty name for what is handed through."""
    if key in CONTROLS:
        return key, value
    if key in ALIASES:
        return ALIASES[key], value
    if value is None or not isinstance(key, str):
        return "", None
    if key in _NO_THINKING:
        if value == _NO_THINKING[key] and isinstance(value, type(_NO_THINKING[key])):
            return "max_thinking_tokens", 0
        if key == "enable_thinking" and value is True:  # thinking is what a row does anyway
            return "", None
        raise InputError(f"{name}: {key} is {value!r:.80}, which sets no number of tokens; write {_THINKING}.")
    if key in _GROUPS and isinstance(value, Mapping):
        raise InputError(f"{name}: {key} is a group of settings, which are not read; write max_thinking_tokens.")
    plain = key.lower().replace("-", "_")
    if plain in _REFUSED:
        instead = _REFUSED[plain]
        remedy = f"write {instead} if it is meant" if instead else "leave it out"
        raise InputError(f"{name}: {key} is not a setting of s1jax; {remedy}, or give the field another name.")
    meant = _meant(key)
    if meant:
        raise InputError(f"{name}: {key} is no control; write {meant} if it is meant, else give it another name.")
    return "", None


@functools.lru_cache(maxsize=1024)
def _meant(key: str) -> str:
    """The setting whose name was misspelt; empty for all other fields."""
    if key in _KNOWN:
        return ""
    # Not the shortest, which too many words resemble: top, step.
    names = (*(name for name in CONTROLS if name not in ("n", "stop")), "wait", "system", *ALIASES, *_NO_THINKING)
    return next(iter(difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=_CLOSE)), "")
