"""The API `/v1/responses` of OpenAI, without stored responses.

Thinking is an item of the type `reasoning` whose content has the type `reasoning_text`; there is no summary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.engine.pieces import Piece
from s1jax.serve import budgets, chat, protocol, settings
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Event, Result, Usage
from s1jax.serve.reader import Reader, refuse, shown
from s1jax.text.messages import Message

_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("input_text", "output_text", "text")
_OUT = "leave it out"
# Fields of this API alone that are not done here, see `settings.REFUSED`.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((), "no response is stored, so send the whole conversation as input"),
    "conversation": ((), "no conversation is stored, so send it as input"),
    "background": ((False,), _OUT),
    "background_options": ((), _OUT),
    "context_management": (([],), _OUT),
    "image": ((), _OUT),
    "prompt": ((), "write input"),
    "messages": ((), "write input"),
    "truncation": (("disabled",), _OUT),
    "include": (([], ["reasoning.encrypted_content"]), "leave it out; thinking is sent as text"),
    "access_programs": ((), _OUT),
    "max_tool_calls": ((), _OUT),
}


def read(reader: Reader, defaults: Defaults) -> Call:
    """Returns the call that a body asks for; its reader then knows all fields that are accepted.

    Raises:
      ApiError: 400, a field is invalid; 404, the model is not served.
    """
    name = protocol.model(reader, defaults)
    settings.refused(reader, ("max_output_tokens",), "stop", "n", "metadata", "instructions")
    for field, (values, remedy) in _REFUSED.items():
        reader.only(field, values, remedy)
    if reader.value("include"):
        reader.unused("include")
    text = reader.group("text") or reader.groups["text"]
    text.only("format", ({"type": "text"},), 'leave it out, or write {"type": "text"}')
    text.only("verbosity", ("medium",), _OUT)
    instructions = reader.text("instructions")
    system = (Message("system", instructions),) if instructions else ()
    conversation = system + _conversation(reader)
    thinking = budgets.read(reader, defaults)
    given = {**settings.sampling(reader), **settings.stops(reader), **thinking.given}
    total = settings.length(reader, "max_output_tokens")
    settings.lengths(reader, given, total, defaults)
    stream = settings.streaming(reader, counts=False)["stream"]
    identity, created = protocol.identity("resp_")
    effort = reader.groups["reasoning"].value("effort") or reader.value("reasoning_effort")
    call = Call(
        api="responses", id=identity, created=created, model=name, prompts=(conversation,),
        params=protocol.sampling_params(defaults, given), given=given, max_completion_tokens=total, stream=stream,
        include_reasoning=thinking.include, **settings.serving(reader),
        repeated={
            "instructions": instructions, "max_output_tokens": total or None, "metadata": _metadata(reader),
            "reasoning": {"effort": effort, "summary": None},
        },
    )  # fmt: skip
    return dataclasses.replace(call, ignored=protocol.ignored(reader))


def _metadata(reader: Reader) -> dict[str, str]:
    """Reads what the reply repeats."""
    schema = {"type": ["object", "null"], "additionalProperties": {"type": "string"}}
    found = reader.value("metadata", schema)
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        refuse("metadata", f"is {shown(found)}; it must be an object of strings.")
    return dict(found)


def _conversation(reader: Reader) -> tuple[Message, ...]:
    """Reads `input`: text, or a list of messages and of earlier reasoning."""
    found = reader.value("input")
    if isinstance(found, str):
        return (Message("user", chat.text(reader, "input")),)
    if not isinstance(found, list) or not found:
        refuse("input", f"is {shown(found)}; write a text, or a list with at least one message.")
    messages: list[Message] = []
    thought: str | None = None
    for i, item in enumerate(found):
        path = f"input[{i}]"
        fields = reader.inside(item, path)
        kind = item.get("type", "message")
        if kind == "reasoning":
            thought = _thought(fields)
            continue
        if kind != "message":
            refuse(f"{path}.type", f"is {shown(kind)}; s1jax reads message and reasoning.")
        messages.append(_message(fields, path, thought))
        thought = None
    if not messages or messages[-1].role != "user" or thought is not None:
        refuse("input", "must end with a message of the user.")
    return tuple(messages)


def _thought(fields: Reader) -> str | None:
    """The text of earlier reasoning; None if it has none, as that of other servers."""
    fields.value("type")
    fields.unused("id", "status", "summary", "encrypted_content")
    return chat.text(fields, "content", ("reasoning_text",)) if fields.value("content") else None


def _message(fields: Reader, path: str, thought: str | None) -> Message:
    role = fields.word("role", _ROLES)
    if role is None:
        refuse(f"{path}.role", f"is missing; choose one of {', '.join(_ROLES)}.")
    fields.only("type", ("message",), "leave it out")
    fields.unused("id", "status", "phase")
    content = chat.text(fields, "content", _PARTS)
    if thought is not None and role != "assistant":
        refuse(path, "follows reasoning, which belongs before a message of the assistant; leave the reasoning out.")
    return Message("system" if role == "developer" else role, content, thought)  # type: ignore[arg-type]


def whole(call: Call, results: Sequence[Result], count: Count = Usage.of) -> dict[str, Any]:
    """Returns the reply.

    Args:
      call: the request.
      results: the one result.
      count: counts tokens and money.
    """
    (result,) = results
    output = result.output
    done = output.answer_end == "stop"
    status = "completed" if done else "incomplete"
    items = [_reasoning(call, output.thinking, "completed")] if call.include_reasoning and output.thinking else []
    extra = {"handoff": dict(result.handoff)} if result.handoff else {}
    return {
        **_response(call, status),
        "model": result.model or call.model,
        "incomplete_details": None if done else {"reason": "max_output_tokens"},
        "output": [*items, _message_item(call, output.answer, status)],
        "usage": count(call, results).responses(),
        "thinking": result.thinking(),
        "stop_reason": output.stop_reason,
        **extra,
    }


def fail(error: ApiError) -> dict[str, Any]:
    """Returns the body of an error."""
    return error.body()


def _response(call: Call, status: str) -> dict[str, Any]:
    """A response without output."""
    return {
        "id": call.id, "object": "response", "created_at": call.created, "status": status, "background": False,
        "error": None, "incomplete_details": None, "model": call.model, "output": [], "parallel_tool_calls": False,
        "previous_response_id": None, "store": False, "temperature": call.params.temperature,
        "text": {"format": {"type": "text"}}, "tool_choice": "none", "tools": [], "top_p": call.params.top_p,
        "truncation": "disabled", "usage": None, "seed": call.params.seed, **call.repeated,
    }  # fmt: skip


def _name(call: Call, prefix: str) -> str:
    """The id of an item of a reply."""
    return prefix + call.id.removeprefix("resp_")


def _reasoning(call: Call, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": _name(call, "rs_"), "type": "reasoning", "summary": [], "content": content, "status": status}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(call: Call, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_text(text)]
    return {"id": _name(call, "msg_"), "type": "message", "role": "assistant", "status": status, "content": content}


class Stream:
    """Writes the events of a streamed reply."""

    done = b""

    def __init__(self, call: Call, count: Count = Usage.of):
        """Takes the request and what counts tokens and money."""
        self._call, self._count = call, count
        self._number = 0  # of the next event
        self._items = 0  # finished
        self._open = ""  # part whose item is open
        self._text = ""  # of it

    def begin(self) -> list[Event]:
        """Returns the events before the first piece."""
        response = _response(self._call, "in_progress")
        return [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]

    def piece(self, index: int, piece: Piece) -> list[Event]:
        """Returns the events of a piece; none if it has no text to send."""
        events = self._finish("completed") if piece.part == "answer" and self._open == "thinking" else []
        if not piece.text or (piece.part == "thinking" and not self._call.include_reasoning):
            return events
        events += self._start(piece.part)
        self._text += piece.text
        kind = "response.reasoning_text.delta" if piece.part == "thinking" else "response.output_text.delta"
        forced = {"forced": True} if piece.forced else {}
        logprobs: dict[str, Any] = {"logprobs": []} if piece.part == "answer" else {}
        return [*events, self._event(kind, **self._place(), delta=piece.text, **logprobs, **forced)]

    def end(self, results: Sequence[Result]) -> list[Event]:
        """Returns the events after the last piece."""
        response = whole(self._call, results, self._count)
        events = self._finish("completed") if self._open == "thinking" else []
        events += self._start("answer")
        events += self._finish(response["status"])
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def fail(self, error: ApiError) -> list[Event]:
        """Returns the events of an error after the stream has begun."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = {**_response(self._call, "failed"), "error": {"code": code, "message": error.message}}
        return [
            self._event("error", code=error.code or error.type, message=error.message, param=error.param),
            self._event("response.failed", response=response),
        ]

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return kind, event

    def _item(self, text: str | None, status: str) -> dict[str, Any]:
        """The open item."""
        make = _reasoning if self._open == "thinking" else _message_item
        return make(self._call, text, status)

    def _part(self, text: str) -> dict[str, Any]:
        """The part of the open item."""
        return {"type": "reasoning_text", "text": text} if self._open == "thinking" else _text(text)

    def _place(self) -> dict[str, Any]:
        """Where the open part is."""
        return {"item_id": self._item(None, "")["id"], "output_index": self._items, "content_index": 0}

    def _start(self, part: str) -> list[Event]:
        """Opens the item of a part, unless it is open."""
        if self._open == part:
            return []
        self._open, self._text = part, ""
        item = self._item(None, "in_progress")
        return [
            self._event("response.output_item.added", output_index=self._items, item=item),
            self._event("response.content_part.added", **self._place(), part=self._part("")),
        ]

    def _finish(self, status: str) -> list[Event]:
        """Closes the open item."""
        kind = "response.reasoning_text.done"
        extra: dict[str, Any] = {}
        if self._open == "answer":
            kind, extra = "response.output_text.done", {"logprobs": []}
        events = [
            self._event(kind, **self._place(), text=self._text, **extra),
            self._event("response.content_part.done", **self._place(), part=self._part(self._text)),
            self._event(
                "response.output_item.done", output_index=self._items, item=self._item(self._text, status)
            ),
        ]  # fmt: skip
        self._items, self._open = self._items + 1, ""
        return events
