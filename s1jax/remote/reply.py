"""What an OpenAI-compatible endpoint answers, as types: `Completion`, `Usage`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

# Names under which servers send the text of thinking, beside `content`; the first that has some counts.
REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "reasoning_text", "thinking", "thoughts")
_TEXTS = ("text", "content", "thinking", "reasoning", "summary")  # of a part of a list
# Tags around thinking in a content: those of R1 and the like, of OpenThoughts, of Kimi.
_TAGS = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "reasoning", "thought")),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
_SOLUTION = re.compile(r"\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>\s*)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a request is billed for.

    Attributes:
      prompt_tokens: of the prompt, cached ones included.
      completion_tokens: generated, thinking included.
      cached_tokens: those of the prompt that were cached.
      reasoning_tokens: those of the completion that are thinking; 0 where the endpoint does not say.
      cost: in USD; None where the endpoint does not say.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
      content: text of the answer.
      reasoning: text of the thinking; empty where the endpoint sends none.
      model: that answered, in the endpoint's words.
      id: of the completion, in the endpoint's words; may be empty.
      finish_reason: such as `stop` or `length`; may be empty.
      thinking_end: `natural` or `cut`, as a server of s1jax says it: one that cuts thinking still lets the model
        answer, with finish_reason `stop`. Empty where the endpoint does not say.
      usage: what it is billed for; None where the endpoint does not say.
      attempts: requests that were sent for it.
      lost: those of them that may be billed although their answer never arrived.
      seconds: from the first request to the answer.
    """

    content: str
    reasoning: str
    model: str
    id: str
    finish_reason: str
    usage: Usage | None
    attempts: int = 1
    lost: int = 0
    seconds: float = 0.0
    thinking_end: str = ""


def parse(body: Any, headers: Mapping[str, str]) -> Completion:
    """Returns the completion in the body of a response.

    Args:
      body: decoded JSON. Half of a surrogate pair in its texts becomes U+FFFD, as other undecodable text does.
      headers: of the response, by names in small letters.

    Raises:
      ValueError: it is not a chat completion; says what it lacks.
    """
    if not isinstance(body, Mapping):
        raise ValueError("the answer is not a JSON object")
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(first, Mapping) or not isinstance(message, Mapping):
        raise ValueError("the answer has no choices[0].message")
    content, inside = _content(message.get("content"))
    given = (_text(message.get(name)) for name in REASONING_FIELDS)
    reasoning = next((text for text in given if text), inside)
    thinking = first.get("thinking")
    if not reasoning:
        reasoning, content = _untagged(content)
    return Completion(
        content=_unicode(content),
        reasoning=_unicode(reasoning),
        model=_string(body.get("model")),
        id=_string(body.get("id")),
        finish_reason=_string(first.get("finish_reason")),
        usage=_usage(body.get("usage"), headers),
        thinking_end=_string(thinking.get("end")) if isinstance(thinking, Mapping) else "",
    )


def error_of(body: Any) -> tuple[str, str]:
    """Returns message and code of an error body, empty where it has none.

    The code is `error.code`, or `error.type` where that is the more telling one: OpenAI sends `insufficient_quota` in
    both, others in one of them.
    """
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, Mapping):
        return "", ""
    names = [text for text in (error.get("code"), error.get("type")) if isinstance(text, str)]
    code = next((name for name in names if "quota" in name or "billing" in name), names[0] if names else "")
    return _string(error.get("message") or error.get("detail")), code


def _content(content: Any) -> tuple[str, str]:
    """Returns text and thinking of a content, which is a string or a list of parts."""
    if not isinstance(content, list):
        return _string(content), ""
    parts = [part for part in content if isinstance(part, Mapping)]
    thinks = [str(part.get("type")) in ("thinking", "reasoning") for part in parts]
    text = "".join(_text([part]) for part, is_thinking in zip(parts, thinks, strict=True) if not is_thinking)
    return text, "".join(_text([part]) for part, is_thinking in zip(parts, thinks, strict=True) if is_thinking)


def _untagged(content: str) -> tuple[str, str]:
    """Returns thinking and answer of a content that has both, with tags around the thinking at its start.

    The first tag is missing where the chat template puts it into the prompt, as R1's does. The last one is missing
    where the thinking was cut.
    """
    for first, last in _TAGS:
        begins = content.lstrip().startswith(first)
        inside, end, rest = (content.lstrip().removeprefix(first) if begins else content).partition(last)
        if not begins and (not end or first in inside or not inside.strip()):
            continue
        if solution := _SOLUTION.fullmatch(rest):
            rest = solution[1].rstrip()
        return inside.strip(), rest.lstrip()
    return "", content


def _text(value: Any) -> str:
    """Returns the text of a string, of an object that has one, or of a list of such objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, Mapping):
        return next((text for name in _TEXTS if (text := _text(value.get(name)))), "")
    return ""


def _usage(given: Any, headers: Mapping[str, str]) -> Usage | None:
    if not isinstance(given, Mapping):
        return None
    prompt, completion = _count(given.get("prompt_tokens")), _count(given.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    reasoning = _detail(given, "completion_tokens_details", "reasoning_tokens")
    cost = _dollars(given.get("cost"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=_detail(given, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=reasoning or _count(given.get("reasoning_tokens")) or 0,
        cost=_dollars(headers.get("x-litellm-response-cost")) if cost is None else cost,
    )


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details.get(name)) if isinstance(details, Mapping) else None) or 0


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if whole else None


def _dollars(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _string(value: Any) -> str:
    return _unicode(value) if isinstance(value, str) else ""


def _unicode(text: str) -> str:
    """Returns a text that has a UTF-8 form: half of a surrogate pair, which JSON can hold, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
