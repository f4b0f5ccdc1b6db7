"""The API `/v1/completions` of OpenAI: prompts without a chat template.

The engine forces think_start after the prompt, as it does for `prompt_ids` in Python. `text` is the answer alone;
thinking is in `reasoning`. With `echo`, `logprobs` and `max_tokens` 0 or 1, a prompt is scored and nothing is sampled,
as lm-evaluation-harness asks for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.engine.pieces import Piece
from s1jax.serve import budgets, protocol, settings
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Echo, Event, Result, Usage
from s1jax.serve.reader import MOST, Reader, refuse, shown, string
from s1jax.serve.reader import whole as whole_number

_TOTALS = ("max_tokens", "max_completion_tokens")


def read(reader: Reader, defaults: Defaults) -> Call:
    """Returns the call that a body asks for; its reader then knows all fields that are accepted.

    Raises:
      ApiError: 400, a field is invalid; 404, the model is not served.
    """
    name = protocol.model(reader, defaults)
    settings.refused(reader, _TOTALS, "stop", "logprobs", "n", "echo", "best_of")
    prompts = _prompts(reader, defaults)
    echo, logprobs = reader.flag("echo") or False, reader.integer("logprobs", 0, 1)
    thinking = budgets.read(reader, defaults)
    given = {**settings.sampling(reader, samples=defaults.max_samples), **settings.stops(reader), **thinking.given}
    scored = echo and logprobs is not None
    total = settings.length(reader, *_TOTALS, least=0 if scored else 1)
    reader.only("best_of", (1, given.get("n", 1)), "write n if it is meant")
    settings.lengths(reader, given, total, defaults)
    streaming = settings.streaming(reader)
    if scored:
        _check_score(reader, given, defaults)
    elif logprobs:
        refuse("logprobs", "is 1; beside the sampled token no other is known, so write 0 for that one's.")
    if echo and streaming["stream"]:
        refuse("echo", "is true, but a prompt is not streamed; leave out one of echo and stream.")
    identity, created = protocol.identity("cmpl-")
    call = Call(
        api="completions", id=identity, created=created, model=name, prompts=prompts,
        params=protocol.sampling_params(defaults, given), given=given, max_completion_tokens=total,
        include_reasoning=thinking.include, reasoning_names=defaults.reasoning_names,
        logprobs=logprobs is not None, echo=echo, only_prompt=scored, **streaming, **settings.serving(reader),
    )  # fmt: skip
    return dataclasses.replace(call, ignored=protocol.ignored(reader))


def _check_score(reader: Reader, given: Mapping[str, Any], defaults: Defaults) -> None:
    """Refuses what does not go with scoring a prompt."""
    totals = [(name, reader.value(name)) for name in _TOTALS if reader.value(name) is not None]
    name, total = totals[0] if totals else ("max_tokens", None)
    if total not in (0, 1):
        refuse(name, f"is {shown(total)}, but echo with logprobs scores the prompt; write 0 or 1.")
    if given.get("n", 1) > 1:
        refuse("n", "goes with sampling, but echo with logprobs scores the prompt; leave it out.")
    if total == 1 and given.get("temperature", defaults.params.temperature) > 0:
        refuse("temperature", "must be 0 where echo with logprobs scores the prompt; write 0, or max_tokens: 0.")


def _prompts(reader: Reader, defaults: Defaults) -> tuple[str | tuple[int, ...], ...]:
    """Reads one prompt or a list of them, each text or ids."""
    value = reader.value("prompt", _schema(defaults))
    if value is None:
        refuse("prompt", "is missing; write a text, a list of ids, or a list of those.")
    if not isinstance(value, list) or (value and all(isinstance(each, int) for each in value)):
        value = [value]
    if not value or len(value) > defaults.max_prompts:
        refuse("prompt", f"has {len(value)} prompts; give 1 to {defaults.max_prompts}.")
    return tuple(_prompt(each, "prompt" if len(value) == 1 else f"prompt[{i}]") for i, each in enumerate(value))


def _schema(defaults: Defaults) -> dict[str, Any]:
    """JSON schema of `prompt`."""
    text, ids = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0, "maximum": MOST}
    listed = {"type": "array", "minItems": 1, "items": ids}
    several = {"type": "array", "minItems": 1, "maxItems": defaults.max_prompts, "items": {"anyOf": [text, listed]}}
    return {"anyOf": [text, listed, several]}


def _prompt(value: Any, path: str) -> str | tuple[int, ...]:
    if not isinstance(value, list):
        text = string(value, path)
        return text or refuse(path, "is empty; give at least one character.")
    if not value:
        refuse(path, "is empty; give at least one id.")
    return tuple(whole_number(each, f"{path}[{i}]") for i, each in enumerate(value))


def whole(call: Call, results: Sequence[Result], count: Count = Usage.of) -> dict[str, Any]:
    """Returns the reply.

    Args:
      call: the request.
      results: of its choices, in order.
      count: counts tokens and money.
    """
    choices = [_choice(call, i, result) for i, result in enumerate(results)]
    return {**_head(call), "choices": choices, "usage": count(call, results).openai()}


def fail(error: ApiError) -> dict[str, Any]:
    """Returns the body of an error."""
    return error.body()


class Stream(protocol.OpenAIStream):
    """Writes the chunks of a streamed reply."""

    def __init__(self, call: Call, count: Count = Usage.of):
        """Takes the request and what counts tokens and money."""
        self._call, self._count = call, count

    def begin(self) -> list[Event]:
        """Returns no chunks."""
        return []

    def piece(self, index: int, piece: Piece) -> list[Event]:
        """Returns the chunk of a piece of a choice; none if it has no text to send."""
        if not piece.text or (piece.part == "thinking" and not self._call.include_reasoning):
            return []
        thinking = dict.fromkeys(self._call.reasoning_names, piece.text) if piece.part == "thinking" else {}
        choice = {
            "index": index, "text": "" if thinking else piece.text, **thinking,
            **({"forced": True} if piece.forced else {}), "logprobs": None, "finish_reason": None,
        }  # fmt: skip
        return [("", {**_head(self._call), "choices": [choice]})]

    def end(self, results: Sequence[Result]) -> list[Event]:
        """Returns the last chunk of every choice, and the count of tokens if it is asked for."""
        events: list[Event] = []
        for i, result in enumerate(results):
            events.append(("", {**_head(self._call), "choices": [{"text": "", **_end(self._call, i, result)}]}))
        if self._call.include_usage:
            usage = self._count(self._call, results).openai()
            events.append(("", {**_head(self._call), "choices": [], "usage": usage}))
        return events


def _head(call: Call) -> dict[str, Any]:
    return {"id": call.id, "object": "text_completion", "created": call.created, "model": call.model}


def _choice(call: Call, index: int, result: Result) -> dict[str, Any]:
    before = result.echo.text if call.echo and result.echo else ""
    if call.only_prompt and result.echo:
        after = result.echo.next[0] if result.echo.next else ""
        return {
            "index": index, "text": before + after, "logprobs": _scored(result.echo), "finish_reason": "length",
        }  # fmt: skip
    thinking = dict.fromkeys(call.reasoning_names, result.output.thinking) if call.include_reasoning else {}
    return {"text": before + result.output.answer, **thinking, **_end(call, index, result)}


def _end(call: Call, index: int, result: Result) -> dict[str, Any]:
    """What is known of a choice when it is finished."""
    output = result.output
    return {
        "index": index,
        "logprobs": _sampled(result) if call.logprobs else None,
        "finish_reason": output.answer_end,
        "stop_reason": output.stop_reason,
        "thinking": result.thinking(),
        "seed": output.params.seed,
    }


def _sampled(result: Result) -> dict[str, Any]:
    """Log-probabilities of the answer's tokens; 0 for forced ones."""
    tokens = [result.token_texts[place] for place in result.answer]
    logprobs = [result.output.logprobs[place] for place in result.answer]
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": _offsets(tokens)}


def _scored(echo: Echo) -> dict[str, Any]:
    """Log-probabilities of the prompt's tokens, and of the one after them."""
    after = [echo.next] if echo.next else []
    tokens = [*echo.tokens, *(token for token, _ in after)]
    top = [None if each is None else {each[0]: each[1]} for each in (*echo.top, *after)]
    logprobs = [*echo.logprobs, *(logprob for _, logprob in after)]
    for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        entry = top[place]
        if entry is not None and logprob is not None:  # OpenAI's reply has the token itself beside the best ones
            top[place] = {token: logprob, **entry}
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": _offsets(tokens)}


def _offsets(tokens: Sequence[str]) -> list[int]:
    """Where each token begins in the text of all, in characters."""
    offsets, length = [], 0
    for token in tokens:
        offsets.append(length)
        length += len(token)
    return offsets
