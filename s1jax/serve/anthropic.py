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
from s1jax.serve import budgets, chat, protocol, settings, tool_blocks, tool_calls
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Event, Result, Usage
from s1jax.serve.reader import Reader, refuse, string
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall

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
# Blocks that are not text.
_BLOCKS = {"user": ("tool_result",), "assistant": ("thinking", "redacted_thinking", "tool_use")}
_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


def read(reader: Reader, defaults: Defaults) -> Call:
    """Returns the call that a body asks for; its reader then knows all fields that are accepted.

    Raises:
      ApiError: 400, a field is invalid; 404, the model is not served.
    """
    name = protocol.model(reader, defaults)
    settings.refused(reader, ("max_tokens",), "stop_sequences", "n", "system", *tool_blocks.NAMES)
    offered = tool_blocks.read(reader, defaults)
    for field, (values, remedy) in _REFUSED.items():
        reader.only(field, values, remedy)
    reader.unused("cache_control", "inference_geo", "user_profile_id", "workspace_id")
    conversation = _messages(reader, defaults.tools)
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
        include_reasoning=thinking.include and thinking.asked, **offered, **settings.serving(reader),
    )  # fmt: skip
    return dataclasses.replace(call, ignored=protocol.ignored(reader))


def _messages(reader: Reader, tools: bool) -> tuple[Message, ...]:
    """Reads a conversation that ends with the user, or with the results of tools."""
    found = reader.items("messages")
    if not found:
        refuse("messages", "is missing; give a list with at least one message.")
    paths: list[str] = []
    read: list[tool_calls.Read] = []
    for i, message in enumerate(found):
        for path, each in _message(reader, message, f"messages[{i}]", tools):
            paths.append(path)
            read.append(each)
    if read[-1][0].role not in ("user", "tool"):
        refuse(f"messages[{len(found) - 1}].role", "is assistant; the last message must be the user's.")
    return tool_calls.in_order(read, paths)


def _message(reader: Reader, value: Any, path: str, tools: bool) -> list[tuple[str, tool_calls.Read]]:
    """Reads a message; of the user's, each result of a tool becomes one of its own. They come with their paths."""
    fields = reader.inside(value, path)
    role = fields.word("role", ("user", "assistant"))
    if role is None:
        refuse(f"{path}.role", "is missing; choose one of user, assistant.")
    content = fields.value("content")
    blocks = content if isinstance(content, list) else []
    kinds = [block.get("type") if isinstance(block, Mapping) else None for block in blocks]
    places = {kind: [i for i, each in enumerate(kinds) if each == kind] for kind in _BLOCKS[role]}
    if not tools:
        places |= {kind: [] for kind in ("tool_use", "tool_result") if kind in places}
    taken = {i for each in places.values() for i in each}
    left = [block for i, block in enumerate(blocks) if i not in taken]
    words = chat.text(fields, "content", content=left if isinstance(content, list) else None)
    if role == "assistant":
        thoughts = [string(blocks[i].get("thinking"), f"{path}.content[{i}].thinking") for i in places["thinking"]]
        ids, calls = tool_blocks.uses(reader, [(f"{path}.content[{i}]", blocks[i]) for i in places["tool_use"]])
        return [(path, (Message("assistant", words, "\n".join(thoughts) if thoughts else None, calls), ids))]
    results = []
    for number, i in enumerate(places["tool_result"]):
        if number != i:
            refuse(f"{path}.content[{i}]", "is a result after other blocks; put results first.")
        read = tool_blocks.result(reader, f"{path}.content[{i}]", blocks[i], chat.text)
        results.append((f"{path}.content[{i}].tool_use_id", read))
    return results if results and not left else [*results, (path, (Message("user", words), ()))]


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
        "content": [*blocks, *_blocks(call, result.output.answer)],
        **_stop(call, result),
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


def _stop(call: Call, result: Result) -> dict[str, Any]:
    """Why the answer ended."""
    output = result.output
    if output.answer_end == "length":
        reason = "max_tokens"
    elif tool_calls.split(call, output.answer)[1]:
        reason = "tool_use"
    else:
        reason = "end_turn" if output.stop_reason is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": output.stop_reason if reason == "stop_sequence" else None}


def _blocks(call: Call, answer: str) -> list[dict[str, Any]]:
    """The blocks of an answer: texts and calls, in order."""
    splitter, blocks = tool_calls.Splitter(call), []
    for part in splitter.add(answer) + splitter.finish():
        if not isinstance(part, str):
            blocks.append(tool_blocks.block_of(_id(call, part[0]), part[1]))
        elif blocks and blocks[-1]["type"] == "text":
            blocks[-1]["text"] += part
        else:
            blocks.append({"type": "text", "text": part})
    return blocks or [{"type": "text", "text": ""}]


def _id(call: Call, number: int) -> str:
    return tool_calls.identity(call, 0, number, "toolu_")


class Stream:
    """Writes the events of a streamed reply."""

    done = b""

    def __init__(self, call: Call, count: Count = Usage.of):
        """Takes the request and what counts tokens and money."""
        self._call, self._count = call, count
        self._blocks = 0  # finished
        self._open = ""  # part whose block is open
        self._splitter = tool_calls.Splitter(call)
        self._has_answer = False

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
        forced = {"forced": True} if piece.forced else {}
        if piece.part == "answer":
            return events + self._parts(self._splitter.add(piece.text), forced)
        return events + self._start("thinking") + [self._delta("thinking", "thinking", piece.text, forced)]

    def _parts(self, parts: Sequence[str | tuple[int, ToolCall]], forced: Mapping[str, Any]) -> list[Event]:
        """Returns the events of parts of an answer."""
        events: list[Event] = []
        for part in parts:
            self._has_answer = True
            if isinstance(part, str):
                events += [*self._start("answer"), self._delta("text", "text", part, forced)]
                continue
            events += self._finish() if self._open else []
            block = {**tool_blocks.block_of(_id(self._call, part[0]), part[1]), "input": {}}
            events.append(_event("content_block_start", index=self._blocks, content_block=block))
            events += [self._delta("input_json", "partial_json", part[1].arguments, {}), *self._finish()]
        return events

    def _delta(self, kind: str, name: str, text: str, forced: Mapping[str, Any]) -> Event:
        delta = {"type": f"{kind}_delta", name: text, **forced}
        return _event("content_block_delta", index=self._blocks, delta=delta)

    def end(self, results: Sequence[Result]) -> list[Event]:
        """Returns the events after the last piece."""
        (result,) = results
        events = self._finish() if self._open == "thinking" else []
        events += self._parts(self._splitter.finish(), {})
        events += [] if self._has_answer else self._start("answer")
        events += self._finish() if self._open else []
        usage = self._count(self._call, results).anthropic()
        extra: dict[str, Any] = {"thinking": result.thinking(), "seed": result.output.params.seed}
        extra |= {"handoff": dict(result.handoff)} if result.handoff else {}
        return [
            *events,
            _event("message_delta", delta=_stop(self._call, result), usage=usage, **extra),
            _event("message_stop"),
        ]

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
