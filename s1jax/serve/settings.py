"""Reads the fields that several APIs share: sampling, stop strings, streaming, and what is refused by name."""

from __future__ import annotations

from typing import Any

from s1jax.serve.protocol import Defaults
from s1jax.serve.reader import MOST, Reader, refuse, string

_STOPS = 64  # as `SamplingParams` has it
_SEEDS = 2**63 - 1

# Accepted without an effect.
IGNORED = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "safety_identifier", "request_id",
)  # fmt: skip
_OUT = "leave it out"
# Fields that are not done here, the values that ask for nothing, and the remedy.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "response_format": (({"type": "text"},), 'leave it out, or write {"type": "text"}'),
    "logit_bias": (({},), _OUT),
    "frequency_penalty": ((0, 0.0), "write repetition_penalty if it is meant, else 0"),
    "presence_penalty": ((0, 0.0), "write repetition_penalty if it is meant, else 0"),
    "audio": ((), _OUT),
    "modalities": ((["text"],), 'leave it out, or write ["text"]'),
    "tools": (([],), _OUT),
    "tool_choice": (("none", "auto"), _OUT),
    "functions": (([],), _OUT),
    "function_call": (("none", "auto"), _OUT),
    "prediction": ((), _OUT),
    "web_search_options": ((), _OUT),
    "moderation": ((), _OUT),
    "verbosity": (("medium",), _OUT),
    "best_of": ((1,), "write n if it is meant"),
    "use_beam_search": ((False,), _OUT),
    "length_penalty": ((1, 1.0), _OUT),
    "min_tokens": ((0,), "write min_thinking_tokens if it is meant"),
    "ignore_eos": ((False,), "write num_waits if it is meant"),
    "stop_token_ids": (([],), "write stop if it is meant"),
    "bad_words": (([],), _OUT),
    "allowed_token_ids": ((), _OUT),
    "prompt_logprobs": ((), _OUT),
    "top_logprobs": ((0,), "only the log-probability of the sampled token is known, so leave it out or write 0"),
    "include_stop_str_in_output": ((False,), _OUT),
    "skip_special_tokens": ((True,), _OUT),
    "spaces_between_special_tokens": ((True,), _OUT),
    "add_special_tokens": ((False,), _OUT),
    "truncate_prompt_tokens": ((), "shorten the prompt"),
    "return_token_ids": ((False,), _OUT),
    "structured_outputs": (({},), _OUT),
    "guided_json": ((), _OUT),
    "guided_regex": ((), _OUT),
    "guided_choice": ((), _OUT),
    "guided_grammar": ((), _OUT),
    "json_schema": ((), _OUT),
    "regex": ((), _OUT),
    "ebnf": ((), _OUT),
    "custom_logit_processor": ((), "write thinking_token_budget if it is meant"),
    "logits_processors": (([],), _OUT),
    "chat_template": ((), _OUT),
    "separate_reasoning": ((True,), "thinking is never part of the content; leave it out"),
    "stream_reasoning": ((True,), "write include_reasoning if it is meant"),
    "extra_body": ((), "write its fields beside messages"),
    "logprobs": ((False,), _OUT),
    "n": ((1,), _OUT),
    "suffix": (("",), _OUT),
    "echo": ((False,), _OUT),
    "add_generation_prompt": ((True,), _OUT),
    "continue_final_message": ((False,), _OUT),
    "system": ((), "write it as a message"),
    "instructions": ((), "write it as a message"),
    "reasoning_budget": ((), "write thinking_token_budget if it is meant"),
    "budget_tokens": ((), "write thinking_token_budget if it is meant"),
    "repeat_penalty": ((1, 1.0), "write repetition_penalty if it is meant"),
    "no_repeat_ngram_size": ((0,), "write repetition_penalty if it is meant"),
    "do_sample": ((True,), "write temperature, which is 0 for greedy decoding"),
    "typical_p": ((1, 1.0), _OUT),
    "mirostat": ((0,), _OUT),
}  # fmt: skip
# Other names of the bound of the whole reply, and of stop strings.
TOTALS = (
    "max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "num_predict",
    "n_predict", "max_gen_toks",
)  # fmt: skip
STOPS = ("stop", "stop_sequences", "stop_strings", "until")


def refused(reader: Reader, totals: tuple[str, ...], stop: str, *read: str) -> None:
    """Refuses fields of other servers that would change the reply, and lists harmless ones.

    Args:
      reader: of the request.
      totals: names that this API has for the bound of the whole reply.
      stop: the name that it has for stop strings.
      read: fields that it reads.
    """
    for names, own in ((TOTALS, totals), (STOPS, (stop,))):
        for name in names:
            if name not in own:
                reader.only(name, (), f"write {own[0]} if it is meant")
    for name, (values, remedy) in REFUSED.items():
        if name not in read:
            reader.only(name, values, remedy)
    reader.unused(*(name for name in IGNORED if name not in read))


def sampling(reader: Reader, *, samples: int = 1) -> dict[str, Any]:
    """Reads the fields of `SamplingParams` that need no translation, except budgets; see `budgets.read`.

    Args:
      reader: of the request.
      samples: most samples of a prompt.
    """
    top_k = reader.integer("top_k", -1)
    seed = reader.integer("seed", 0, _SEEDS)
    given: dict[str, Any] = {
        "temperature": reader.number("temperature", 0, 100),
        "top_p": reader.number("top_p", 1e-37, 1),
        "top_k": 0 if top_k == -1 else top_k,  # vLLM's -1: all
        "min_p": reader.number("min_p", 0, 1),
        "repetition_penalty": reader.number("repetition_penalty", 0.01, 100),
        "seed": None if seed is None else seed % 2**32,  # OpenAI's are 64 bits long
        "n": reader.integer("n", 1, samples),
    }
    return {name: value for name, value in given.items() if value is not None}


def stops(reader: Reader, name: str = "stop") -> dict[str, Any]:
    """Reads stop strings: one string, or a list of at most 64; none of them empty."""
    text = {"type": "string", "minLength": 1}
    schema = {"anyOf": [text, {"type": "array", "maxItems": _STOPS, "items": text}, {"type": "null"}]}
    value, path = reader.value(name, schema), reader.path(name)
    if value is None:
        return {}
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        refuse(path, "must be a string or a list of strings.")
    if len(value) > _STOPS:
        refuse(path, f"has {len(value)} strings; give at most {_STOPS}.")
    found = tuple(string(text, f"{path}[{i}]") for i, text in enumerate(value))
    if not all(found):
        refuse(path, "has an empty string, which would end every answer; leave it out.")
    return {"stop": found}


def length(reader: Reader, *names: str, least: int = 1) -> int:
    """Reads the bound of thinking, answer and delimiters together, under several names; 0: none."""
    found = [(name, reader.integer(name, least, MOST)) for name in names]
    given = [(name, value) for name, value in found if value is not None]
    for name, value in given[1:]:
        if value != given[0][1]:
            refuse(name, f"and {given[0][0]} speak of the same and disagree; keep one of them.")
    return given[0][1] or 0 if given else 0


def lengths(reader: Reader, given: dict[str, Any], total: int, defaults: Defaults) -> None:
    """Puts both bounds of length into `given`.

    Args:
      reader: of the request.
      given: fields of `SamplingParams`.
      total: bound of the whole reply, which is that of the answer unless the request says; 0: none.
      defaults: of the server.
    """
    answer = reader.integer("max_answer_tokens", 1)
    if answer is None:
        answer = total or defaults.params.max_answer_tokens
    given["max_answer_tokens"] = min(answer, defaults.context_length)
    if total:
        given["max_completion_tokens"] = min(total, defaults.context_length)


def streaming(reader: Reader, counts: bool = True) -> dict[str, Any]:
    """Reads `stream` and `stream_options` as fields of `Call`; `counts`: whether the API's chunks may have a usage."""
    stream, options = reader.flag("stream") or False, reader.group("stream_options")
    group = options or reader.groups["stream_options"]
    usage = group.flag("include_usage") or False
    group.unused("include_obfuscation")
    running = False
    if counts:
        running = group.flag("continuous_usage_stats") or False
    else:
        group.only("continuous_usage_stats", (False,), "leave it out")
    if options is not None and not stream:
        refuse("stream_options", "is given without stream; write stream: true, or leave it out.")
    return {"stream": stream, "include_usage": usage, "running_usage": running}


def serving(reader: Reader) -> dict[str, Any]:
    """Reads the fields of `Call` that say how a request is served."""
    found: dict[str, Any] = {
        "priority": reader.integer("priority", -MOST),
        "salt": reader.text("cache_salt"),
        "handoff": reader.word("handoff", ("never", "ask", "auto")),
        "max_cost": reader.number("max_cost", 0, 1e6),
    }
    return {name: value for name, value in found.items() if value is not None}
