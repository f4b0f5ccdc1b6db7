"""Which fields of a prompt row are settings, by their own or by another program's name.

There are three kinds of fields. A setting is used. A setting of another program that is missing here, or has another
meaning here, is refused with the name of the field to use. Any other field is copied to the output. So nothing that
changes how vLLM, transformers or an OpenAI client would sample is accepted and ignored. Names of other programs are
recognised in any spelling: `max_tokens`, `max-tokens`, `maxTokens`, `MaxTokens`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from s1jax.config.sampling import SamplingParams
from s1jax.config.schema import from_dict, to_dict
from s1jax.errors import UserError

CONTROLS = tuple(field.name for field in dataclasses.fields(SamplingParams))
# Fields that an output row has beside those of its prompt's row.
OUTPUTS = (
    "thinking", "answer", "controls", "fingerprint", "sample_index", "ids", "forced", "thinking_tokens",
    "answer_tokens", "waits", "thinking_end", "answer_end", "logprob", "stop_reason",
)  # fmt: skip

# Other names of a control, where the meaning is the same: vLLM, SGLang and DashScope, llama.cpp (twice), transformers.
ALIASES = {
    "thinking_token_budget": "max_thinking_tokens",
    "thinking_budget": "max_thinking_tokens",
    "thinking_budget_tokens": "max_thinking_tokens",
    "reasoning_budget_tokens": "max_thinking_tokens",
    "num_return_sequences": "n",
}
# Values with which these fields mean "no thinking", as `none` of reasoning_effort does: at most 0 thinking tokens.
_NO_THINKING = {"enable_thinking": False}

_BUDGETS = "max_thinking_tokens, max_answer_tokens, or max_completion_tokens for both together"
_THINKING = "max_thinking_tokens"
# Settings of other programs -> what to write instead.
_REFUSED = {
    **dict.fromkeys(("max_tokens", "max_new_tokens", "max_output_tokens", "max_gen_toks",
                     "max_length", "max_tokens_to_sample", "num_predict", "n_predict"), _BUDGETS),  # both together
    **dict.fromkeys(("min_tokens", "min_new_tokens", "min_length"), "min_thinking_tokens"),
    # The usual value of reasoning_budget, -1, means that there is no limit.
    **dict.fromkeys(("reasoning_budget", "budget_tokens", "thinking_tokens", "max_reasoning_tokens", "think_budget",
                     "num_thinking_tokens"), "max_thinking_tokens"),
    "no_thinking": "max_thinking_tokens, which is 0 for no thinking",
    **dict.fromkeys(("stops", "stop_sequences", "stop_sequence", "stop_strings", "stop_string", "stop_words",
                     "stop_word", "stop_token", "stop_tokens", "stopping_strings", "until"), "stop"),
    **dict.fromkeys(("system_prompt", "system_message", "system_instruction", "system_text", "developer",
                     "developer_message"), "system"),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "no_repeat_ngram_size", "repeat_penalty"),
                    "repetition_penalty"),
    "do_sample": "temperature, which is 0 for greedy decoding",
    "temp": "temperature",
    **dict.fromkeys(("best_of", "num_samples", "num_generations", "num_completions", "candidate_count"), "n"),
    **dict.fromkeys(("sampling_seed", "random_seed"), "seed"),
    **dict.fromkeys((
        "stop_token_ids", "bad_words", "bad_words_ids", "ignore_eos", "eos_token_id", "logit_bias", "num_beams",
        "use_beam_search", "length_penalty", "typical_p", "penalty_alpha", "top_a", "top_n_sigma", "tfs_z",
        "epsilon_cutoff", "eta_cutoff", "mirostat", "mirostat_mode", "mirostat_tau", "mirostat_eta", "dry_multiplier",
        "xtc_probability", "repeat_last_n", "num_ctx", "allowed_token_ids", "suppress_tokens",
        "logprobs", "top_logprobs", "prompt_logprobs", "return_logprob",
        "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding", "structured_outputs",
        "response_format", "json_schema", "tools", "tool_choice",
        "truncate_prompt_tokens", "add_special_tokens", "skip_special_tokens", "spaces_between_special_tokens",
        "include_stop_str_in_output", "chat_template", "chat_template_kwargs", "custom_params", "extra_body",
        "sampling_params", "generation_config", "generation_kwargs",
    ), ""),
}  # fmt: skip
# Groups that other programs put a budget into; as texts they are columns of data like others.
_GROUPS = ("think", "thinking", "reasoning")
# What the launcher and the encoder read of a row, beside its settings.
_READ = ("question", "prompt_ids", "system")

# `speed` is a name of its own, and looks like `seed`.
_KNOWN = {
    "speed", *_READ, *CONTROLS, *ALIASES, *_NO_THINKING, *_REFUSED, *OUTPUTS, *(f"input_{name}" for name in OUTPUTS),
}  # fmt: skip
_CLOSE = 0.85  # of 1: a letter more or less in the shortest of the controls' names


def row_controls(row: Mapping[str, Any], defaults: SamplingParams, name: str) -> SamplingParams:
    """Returns `defaults` with the row's own settings.

    A field with the value None counts as missing, as in vLLM and in tables.

    Args:
      row: its fields; those that are not settings are ignored.
      defaults: values of the settings that the row lacks.
      name: the name of the row in messages.

    Raises:
      UserError: a control has a bad value or two names with different values, a field is a setting of another program
        that is not used here, or has nearly the name of a control.
    """
    own: dict[str, Any] = {}
    if "thinking_end" in row and "thinking_tokens" in row:  # an output that is sampled again: what it had, no setting
        row = {key: value for key, value in row.items() if key != "thinking_tokens"}
    for key, value in row.items():
        control, value = _control(key, value, name)
        if not control or value is None:
            continue
        if control == "wait" and not isinstance(value, str):
            raise UserError(f"{name}: wait is {value!r}; it must be a string.")
        if control == "stop" and isinstance(value, str):
            value = [value]
        if control in own and own[control] != value:
            other = next(k for k in row if k != key and _control(k, row[k], name)[0] == control)
            raise UserError(f"{name}: {other} and {key} mean the same and differ; keep one of them.")
        own[control] = value
    if not own:
        return defaults
    try:
        return from_dict(SamplingParams, {**to_dict(defaults), **own}, name)
    except UserError as error:
        raise error if str(error).startswith(name) else UserError(f"{name}: {error}") from None


def unused(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the columns of any of the rows, in order, that sampling ignores and copies to the output."""
    read = (*_READ, *CONTROLS, *ALIASES, *_NO_THINKING)
    return [key for key in dict.fromkeys(str(key) for row in rows for key in row) if key not in read]


def settings_in(names: Iterable[str]) -> list[str]:
    """Returns those names of columns that are settings of sampling, here or in other programs."""
    return [name for name in names if name in CONTROLS or name in ALIASES or _folded(name) in _REFUSED_FOLDED]


def _folded(name: str) -> str:
    """A name without what its spellings differ in: `max_tokens`, `max-tokens` and `maxTokens` are one."""
    return re.sub(r"[\W_]", "", name).lower()


_REFUSED_FOLDED = {_folded(name): instead for name, instead in _REFUSED.items()}
_KNOWN_FOLDED = {_folded(name) for name in _KNOWN}


def _control(key: Any, value: Any, name: str) -> tuple[str, Any]:
    """Returns the setting that a field is, and its value; an empty name for a field that is only copied."""
    if key == "reasoning_effort" and value == "none":
        return "max_thinking_tokens", 0
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
        raise UserError(f"{name}: {key} is {value!r:.80}, which sets no number of tokens; write {_THINKING}.")
    if key in _GROUPS and isinstance(value, Mapping):
        raise UserError(f"{name}: {key} is a group of settings, which are not read; write max_thinking_tokens.")
    if key in _GROUPS and isinstance(value, bool):
        raise UserError(f"{name}: {key} is {value}, which sets no number of tokens; write max_thinking_tokens.")
    plain = _folded(key)
    empty = isinstance(value, (str, list, Mapping)) and not value  # no tools, no stop strings: nothing is set
    if plain in _REFUSED_FOLDED and not empty:
        instead = _REFUSED_FOLDED[plain]
        remedy = f"write {instead} if it is meant" if instead else "leave it out"
        raise UserError(f"{name}: {key} is not a setting of s1jax; {remedy}, or give the field another name.")
    meant = _meant(key)
    if meant:
        raise UserError(
            f"{name}: {key} is not a sampling parameter; write {meant} if it is meant, else give it another name."
        )
    return "", None


@functools.lru_cache(maxsize=1024)
def _meant(key: str) -> str:
    """The setting whose name was misspelt; empty for all other fields."""
    if key in _KNOWN:
        return ""
    names = (*CONTROLS, "system", *ALIASES, *_NO_THINKING)
    same = next((name for name in names if _folded(name) == _folded(key)), "")
    if same or _folded(key) in _KNOWN_FOLDED:
        return same
    # Not like the shortest, which too many words resemble: top, step.
    names = tuple(name for name in names if name not in ("n", "stop"))
    return next(iter(difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=_CLOSE)), "")
