"""The API `/v1/messages` of Anthropic.

A request without any field of thinking gets none in its reply, as from Anthropic, because many clients read the first
block as text; the model thinks all the same, and the count of output tokens includes it. The signature of a thinking
block is empty and not checked when it comes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.engine.pieces import Piece
from s1jax.serve import budgets, chat, protocol, settings
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Event, Result, Usage
from s1jax.serve.reader import Reader, refuse, shown, string
from s1jax.text.messages import Message

_OUT = "leave it out"
# Fields of this API alone that are not done here, see `settings.REFUSED`.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "container": ((), _OUT),
    "mcp_servers": (([],), _OUT),
    "prefill": ((), _OUT),
    "speed": (("standard",), _OUT),
    "diagnostics": ((), _OUT),
    "context_management": ((), _OUT),
}
_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


def parse(body: Mapping[str, Any], defaults: Defaults) -> Call:
    """Returns the call that a body asks for.

    Raises:
      ApiError: the body is refused.
    """
    return read(Reader(body), defaults)


def read(reader: Reader, defaults: Defaults) -> Call:
    """`parse` of a body in a reader, which then knows all fields that are accepted."""
    name = protocol.model(reader, defaults)
    settings.refused(reader, ("max_tokens",), "stop_sequences", "n", "system", "tool_choice")
    for field, (values, remedy) in _REFUSED.items():
        reader.only(field, values, remedy)
    reader.only("tool_choice", ({"type": "none"}, {"type": "auto"}), _OUT)
    reader.unused("cache_control", "inference_geo", "user_profile_id", "workspace_id")
    conversation = _messages(reader)
    if reader.value("system", {"anyOf": [*chat.text_schema()["anyOf"], {"type": "null"}]}) is not None:
        words = chat.text(reader, "system", content=reader.value("system"))
        conversation = ((Message("system", words),) if words else ()) + conversation
    config = reader.group("output_config") or reader.groups["output_config"]
    config.only("format", (), _OUT)
    thinking = budgets.read(reader, defaults, config)
    given = {**settings.sampling(reader), **settings.stops(reader, "stop_sequences"), **thinking.given}
    total = settings.length(reader, "max_tokens")
    if not total:
        refuse("max_tokens", "is missing; write the most tokens of thinking and answer together.")
    settings.lengths(reader, given, total, defaults)
    stream = settings.streaming(reader, counts=False)["stream"]
    identity, created = protocol.identity("msg_")
    call = Call(
        api="messages", id=identity, created=created, model=name, prompts=(conversation,),
        params=protocol.sampling_params(defaults, given), given=given, max_completion_tokens=total, stream=stream,
        include_reasoning=thinking.include and thinking.asked, **settings.serving(reader),
    )  # fmt: skip
    return dataclasses.replace(call, ignored=protocol.ignored(reader))


def _messages(reader: Reader) -> tuple[Message, ...]:
    """Reads a conversation that ends with the user."""
    found = reader.items("messages")
    if not found:
        refuse("messages", "is missing; give a list with at least one message.")
    conversation = tuple(_message(reader, message, f"messages[{i}]") for i, message in enumerate(found))
    if conversation[-1].role != "user":
        refuse(f"messages[{len(found) - 1}].role", "is assistant; the last message must be the user's.")
    return conversation


def _message(reader: Reader, value: Any, path: str) -> Message:
    if not isinstance(value, Mapping):
        refuse(path, f"is {shown(value)}; it must be an object.")
    fields = reader.groups[path] = Reader(value, path)
    role = fields.word("role", ("user", "assistant"))
    if role is None:
        refuse(f"{path}.role", "is missing; choose one of user, assistant.")
    content, thoughts = fields.value("content"), []
    if role == "assistant" and isinstance(content, list):
        kinds = [block.get("type") if isinstance(block, Mapping) else None for block in content]
        thoughts = [
            string(block.get("thinking"), f"{path}.content[{i}].thinking")
            for i, block in enumerate(content)
            if kinds[i] == "thinking"
        ]
        content = [b for b, kind in zip(content, kinds, strict=True) if kind not in ("thinking", "redacted_thinking")]
    words = chat.text(fields, "content", content=content)
    return Message(role, words, "\n".join(thoughts) if thoughts else None)  # type: ignore[arg-type]


def whole(call: Call, results: Sequence[Result], count: Count = Usage.of) -> dict[str, Any]:
    """Returns the reply.

    Args:
      call: the request.
      results: the one result.
      count: counts tokens and money.
    """
    (result,) = results
    thought = result.output.thinking if call.include_reasoning else ""
    blocks = [{"type": "thinking", "thinking": thought, "signature": ""}] if thought else []
    extra = {"handoff": dict(result.handoff)} if result.handoff else {}
    return {
        **_head(call, result.model),
        "content": [*blocks, {"type": "text", "text": result.output.answer}],
        **_stop(result),
        "usage": count(call, results).anthropic(),
        "thinking": result.thinking(),
        "seed": result.output.params.seed,
        **extra,
    }


def fail(error: ApiError) -> dict[str, Any]:
    """Returns the body of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message, "param": error.param}}


def _head(call: Call, model: str = "") -> dict[str, Any]:
    return {"id": call.id, "type": "message", "role": "assistant", "model": model or call.model}


def _stop(result: Result) -> dict[str, Any]:
    """Why the answer ended."""
    output = result.output
    if output.answer_end == "length":
        reason = "max_tokens"
    else:
        reason = "end_turn" if output.stop_reason is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": output.stop_reason}


class Stream:
    """Writes the events of a streamed reply."""

    done = b""

    def __init__(self, call: Call, count: Count = Usage.of):
        """Takes the request and what counts tokens and money."""
        self._call, self._count = call, count
        self._blocks = 0  # finished
        self._open = ""  # part whose block is open

    def begin(self) -> list[Event]:
        """Returns the event before the first piece; tokens are counted in that before the last."""
        message = {
            **_head(self._call), "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip
        return [_event("message_start", message=message)]

    def piece(self, index: int, piece: Piece) -> list[Event]:
        """Returns the events of a piece; none if it has no text to send."""
        events = self._finish() if piece.part == "answer" and self._open == "thinking" else []
        if not piece.text or (piece.part == "thinking" and not self._call.include_reasoning):
            return events
        events += self._start(piece.part)
        name = "thinking" if piece.part == "thinking" else "text"
        delta = {"type": f"{name}_delta", name: piece.text, **({"forced": True} if piece.forced else {})}
        return [*events, _event("content_block_delta", index=self._blocks, delta=delta)]

    def end(self, results: Sequence[Result]) -> list[Event]:
        """Returns the events after the last piece."""
        (result,) = results
        events = self._finish() if self._open == "thinking" else []
        events += self._start("answer")
        events += self._finish()
        usage = self._count(self._call, results).anthropic()
        extra: dict[str, Any] = {"thinking": result.thinking(), "seed": result.output.params.seed}
        extra |= {"handoff": dict(result.handoff)} if result.handoff else {}
        return [*events, _event("message_delta", delta=_stop(result), usage=usage, **extra), _event("message_stop")]

    def fail(self, error: ApiError) -> list[Event]:
        """Returns the events of an error after the stream has begun."""
        return [("error", fail(error))]

    def _start(self, part: str) -> list[Event]:
        """Opens the block of a part, unless it is open."""
        if self._open == part:
            return []
        self._open = part
        thinking = {"type": "thinking", "thinking": "", "signature": ""}
        block = thinking if part == "thinking" else {"type": "text", "text": ""}
        return [_event("content_block_start", index=self._blocks, content_block=block)]

    def _finish(self) -> list[Event]:
        """Closes the open block."""
        signature = {"type": "signature_delta", "signature": ""}
        events = (
            [_event("content_block_delta", index=self._blocks, delta=signature)] if self._open == "thinking" else []
        )
        events.append(_event("content_block_stop", index=self._blocks))
        self._blocks, self._open = self._blocks + 1, ""
        return events


def _event(kind: str, **fields: Any) -> Event:
    return kind, {"type": kind, **fields}
