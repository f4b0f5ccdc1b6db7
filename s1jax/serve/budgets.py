"""Reads how long a request may think, under every name that servers and clients have for it."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from s1jax.config.sampling import SamplingParams
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from s1jax.text.delimiters import Delimiters

# Names of the most thinking tokens: vLLM; offline; SGLang, Qwen and FastDeploy; llama.cpp.
MAXIMUM = (
    "thinking_token_budget", "max_thinking_tokens", "thinking_budget", "thinking_budget_tokens",
    "reasoning_budget_tokens",
)  # fmt: skip
# Objects in which the names of `_names` may stand as well.
GROUPS = ("chat_template_kwargs", "custom_params", "nvext")
_THINK = ("low", "medium", "high", "max")  # Ollama

Found = list[tuple[str, Any]]  # paths and values


@dataclasses.dataclass
class _Names:
    """Everything that a request says about thinking: for each matter the paths that speak of it, and their values."""

    limits: Found = dataclasses.field(default_factory=list)
    switches: Found = dataclasses.field(default_factory=list)
    efforts: Found = dataclasses.field(default_factory=list)
    minima: Found = dataclasses.field(default_factory=list)
    waits: Found = dataclasses.field(default_factory=list)
    strings: Found = dataclasses.field(default_factory=list)
    shown: Found = dataclasses.field(default_factory=list)
    no_limit: bool = False  # a limit is null


@dataclasses.dataclass(frozen=True)
class Thinking:
    """How long a request may think.

    Attributes:
      given: fields of `SamplingParams` that the request sets.
      include: whether the text of thinking is sent.
      asked: whether the request has a field of thinking at all.
    """

    given: dict[str, Any]
    include: bool
    asked: bool


def read(reader: Reader, defaults: Defaults, effort: Reader | None = None) -> Thinking:
    """Reads all fields of thinking.

    An upper bound of -1 or null is none. `enable_thinking: false`, `think: false`, `reasoning_effort: "none"` and
    `thinking: {"type": "disabled"}` are a bound of 0. Another effort is a number of the server's table, and a number
    in the request wins over it. Where the chat format has the word (gpt-oss: low, medium, high), it is written into the
    prompt instead, beside any number.

    Args:
      reader: of the request.
      defaults: of the server.
      effort: an object that has a field `effort` as well.

    Raises:
      ApiError: 400 for a value of the wrong type or size, or two fields that disagree; names them.
    """
    found, words = _Names(), (*dict.fromkeys([*defaults.efforts, *defaults.prompt_efforts]), "none")
    _names(reader, found, words)
    if effort is not None:
        _effort(effort, "effort", found, words)
    for name in GROUPS:
        group = reader.group(name)
        if group is not None:
            _names(group, found, words)
            _switch(group, "thinking", found)  # DeepSeek's chat template
        else:  # so that the document and misspelt names know its fields
            _names(reader.groups[name], _Names(), words)
            _switch(reader.groups[name], "thinking", _Names())
    think = reader.value("think")
    if isinstance(think, str):
        found.efforts += [("think", reader.word("think", _THINK))]
    else:
        _switch(reader, "think", found)
    reader.value("think", {"enum": [True, False, *_THINK, None]})
    _reasoning(reader, found, words)
    _thinking(reader, found)
    include = reader.flag("include_reasoning")
    found.shown += [] if include is None else [("include_reasoning", include)]
    asked = any(getattr(found, field.name) for field in dataclasses.fields(found))
    return Thinking(_resolve(found, defaults), bool(_agreed(found.shown, True)), asked)


def _names(reader: Reader, found: _Names, words: tuple[str, ...]) -> None:
    """Reads the names that may stand at the top or in a group."""
    for name in MAXIMUM:
        _limit(reader, name, found)
    _switch(reader, "enable_thinking", found)
    _effort(reader, "reasoning_effort", found, words)
    for name, into in (("min_thinking_tokens", found.minima), ("num_waits", found.waits)):
        value = reader.integer(name)
        if value is not None:
            into.append((reader.path(name), value))
    wait = reader.text("wait")
    if reader.has("wait"):
        found.strings.append((reader.path("wait"), wait or ""))


def _limit(reader: Reader, name: str, found: _Names) -> None:
    value = reader.integer(name, -1)
    if value is not None:
        found.limits.append((reader.path(name), value))
    elif reader.has(name):
        found.no_limit = True


def _switch(reader: Reader, name: str, found: _Names) -> None:
    value = reader.flag(name)
    if value is not None:
        found.switches.append((reader.path(name), value))


def _effort(reader: Reader, name: str, found: _Names, words: tuple[str, ...]) -> None:
    value = reader.word(name, words)
    if value is not None:
        found.efforts.append((reader.path(name), value))


def _reasoning(reader: Reader, found: _Names, words: tuple[str, ...]) -> None:
    """Reads the object of OpenRouter and of `/v1/responses`."""
    group = reader.group("reasoning") or reader.groups["reasoning"]
    _effort(group, "effort", found, words)
    _limit(group, "max_tokens", found)
    _switch(group, "enabled", found)
    exclude = group.flag("exclude")
    found.shown += [] if exclude is None else [("reasoning.exclude", not exclude)]
    group.unused("summary", "generate_summary")  # thinking itself is sent


def _thinking(reader: Reader, found: _Names) -> None:
    """Reads the object of Anthropic, DeepSeek and GLM."""
    group = reader.group("thinking") or reader.groups["thinking"]
    kind = group.word("type", ("enabled", "disabled", "adaptive"))
    if kind is not None:
        found.switches.append(("thinking.type", kind != "disabled"))
    _limit(group, "budget_tokens", found)
    display = group.word("display", ("summarized", "omitted"))
    found.shown += [] if display is None else [("thinking.display", display == "summarized")]


def _resolve(found: _Names, defaults: Defaults) -> dict[str, Any]:
    """Returns the fields of `SamplingParams` that the request sets."""
    given: dict[str, Any] = {}
    off = [(path, 0) for path, on in found.switches if not on] + [(p, 0) for p, word in found.efforts if word == "none"]
    on = [path for path, value in found.switches if value] + [path for path, word in found.efforts if word != "none"]
    limit = _agreed(found.limits + off, None)
    _agreed(found.switches, None)
    effort = _agreed(found.efforts, None)
    if off and on:
        _disagree(off[0][0], on[0])
    if limit == 0 and any(value for _, value in found.switches):
        _disagree(next(path for path, _ in found.limits), next(path for path, value in found.switches if value))
    if limit is not None:
        given["max_thinking_tokens"] = defaults.context_length if limit < 0 else min(limit, defaults.context_length)
    elif effort is not None and effort not in defaults.prompt_efforts:
        given["max_thinking_tokens"] = min(defaults.efforts[effort], defaults.context_length)
    elif found.no_limit:
        given["max_thinking_tokens"] = defaults.context_length
    if effort in defaults.prompt_efforts:
        given["reasoning_effort"] = effort
    for name, each in (("min_thinking_tokens", found.minima), ("num_waits", found.waits), ("wait", found.strings)):
        value = _agreed(each, None)
        if value is not None:
            given[name] = value
    least = given.get("min_thinking_tokens", 0)
    if limit is not None and 0 <= limit < least:
        path = found.minima[0][0]
        bound = next(path for path, value in found.limits + off if value == limit)
        raise ApiError(f"{path} is {least} and exceeds {bound}, which is {limit}; lower it, or raise {bound}.", path)
    # Defaults of the server give way to what the request says.
    most = given.get("max_thinking_tokens", defaults.params.max_thinking_tokens)
    if found.minima:
        given["max_thinking_tokens"] = max(most, least)
    elif most < defaults.params.min_thinking_tokens:
        given["min_thinking_tokens"] = most
    return given


def _agreed(found: Found, missing: Any) -> Any:
    """The one value of a matter; `missing` if nothing speaks of it."""
    if not found:
        return missing
    for path, value in found[1:]:
        if value != found[0][1]:
            _disagree(found[0][0], path)
    return found[0][1]


def _disagree(one: str, other: str) -> NoReturn:
    raise ApiError(f"{one} and {other} speak of the same and disagree; keep one of them.", other)


def fit(
    params: SamplingParams, max_completion_tokens: int, prompt_ids: int, delimiters: Delimiters, length: int
) -> SamplingParams:
    """Lowers the upper bounds of a request to what its prompt leaves of the context, so that an answer always exists.

    Thinking is cut at its budget, or where the closing delimiters and a quarter of what is left, at most the longest
    answer, still fit after it, as the engine does for `max_completion_tokens`.

    Args:
      params: of the request.
      max_completion_tokens: bound of thinking, answer and delimiters together; 0: none.
      prompt_ids: number of tokens of the prompt, without think_start.
      delimiters: of the engine.
      length: of context or cache, in tokens.

    Raises:
      ApiError: 400, the prompt is too long, or the bounds leave no room for the minimum of thinking and an answer.
    """
    prompt = prompt_ids + len(delimiters.think_start)
    closing = sum(map(len, (delimiters.newline, delimiters.think_end, delimiters.final_answer)))
    total = min(length - prompt, max_completion_tokens or length)
    reserve = min(params.max_answer_tokens, max(total // 4, 1))
    thinking = min(params.max_thinking_tokens, total - closing - reserve)
    if thinking < params.min_thinking_tokens:
        _refuse_length(params, max_completion_tokens, prompt, closing, reserve, length)
    answer = min(params.max_answer_tokens, total - len(delimiters.think_end))
    bound = total if closing + thinking + answer > total else max_completion_tokens
    return dataclasses.replace(
        params, max_thinking_tokens=thinking, max_answer_tokens=answer, max_completion_tokens=bound
    )  # fmt: skip


def _refuse_length(
    params: SamplingParams, max_completion_tokens: int, prompt: int, closing: int, reserve: int, length: int
) -> NoReturn:
    """Says what does not fit."""
    thinking = f"{params.min_thinking_tokens} of thinking, " if params.min_thinking_tokens else ""
    parts = f"{thinking}{closing} of delimiters and {reserve} of an answer"
    if max_completion_tokens and prompt + max_completion_tokens <= length:
        raise ApiError(
            f"at least {params.min_thinking_tokens + closing + reserve} tokens are needed ({parts}), but the bound of"
            f" the whole reply is {max_completion_tokens}; raise it.",
            "max_completion_tokens",
        )
    raise ApiError(
        f"the prompt has {prompt} tokens, and {parts} follow, but the context holds {length}; shorten the prompt.",
        None, "context_length_exceeded",
    )  # fmt: skip
