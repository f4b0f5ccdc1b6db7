"""The API `/v1/chat/completions` of OpenAI."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.engine.pieces import Piece
from s1jax.errors import UserError
from s1jax.serve import budgets, protocol, settings, tool_calls
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Event, Result, Usage
from s1jax.serve.reader import Reader, refuse, string
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall

_TOTALS = ("max_completion_tokens", "max_tokens")
_ROLES = ("system", "developer", "user", "assistant")


def read(reader: Reader, defaults: Defaults) -> Call:
    """Returns the call that a body asks for; its reader then knows all fields that are accepted.

    Raises:
      ApiError: 400, a field is invalid; 404, the model is not served.
    """
    name = protocol.model(reader, defaults)
    settings.refused(reader, _TOTALS, "stop", "logprobs", "n", *tool_calls.names(defaults))
    offered = tool_calls.read(reader, defaults)
    longer = reader.group("think_longer")
    before = reader.groups["think_longer"].text("id") or ""
    if longer is not None and not before:
        refuse("think_longer.id", "is missing; write the id of a finished reply.")
    if before and reader.value("tools"):
        refuse("tools", "goes with a new request, but think_longer goes on with a reply; leave one of them out.")
    conversation = messages(reader, defaults, may_lack=bool(before))
    thinking = budgets.read(reader, defaults)
    given = {**settings.sampling(reader, samples=defaults.max_samples), **settings.stops(reader), **thinking.given}
    total = settings.length(reader, *_TOTALS)
    settings.lengths(reader, given, total, defaults)
    streaming = settings.streaming(reader)
    identity, created = protocol.identity("chatcmpl-")
    call = Call(
        api="chat", id=identity, created=created, model=name,
        prompts=(conversation,) if conversation else (),
        params=protocol.sampling_params(defaults, given), given=given,
        max_completion_tokens=total, include_reasoning=thinking.include,
        reasoning_names=defaults.reasoning_names, logprobs=reader.flag("logprobs") or False, think_longer=before,
        **offered, **streaming, **settings.serving(reader),
    )  # fmt: skip
    if before and call.params.n > 1:
        refuse("n", f"is {call.params.n}, but think_longer goes on with one reply; leave it out.")
    return dataclasses.replace(call, ignored=protocol.ignored(reader))


def messages(reader: Reader, defaults: Defaults, may_lack: bool = False) -> tuple[Message, ...]:
    """Reads a conversation that ends with the user, or with the results of tools.

    Args:
      reader: of the request.
      defaults: of the server.
      may_lack: whether it must be missing or empty, because a finished reply goes on.
    """
    name = "messages"
    found = reader.items(name)
    if may_lack:
        if found:
            refuse(name, "goes with a new request, but think_longer goes on with a reply; leave one of them out.")
        return ()
    if not found:
        refuse(name, "is missing; give a list with at least one message.")
    read = [_message(message, f"{name}[{i}]", reader, defaults.tools) for i, message in enumerate(found)]
    last = read[-1][0].role
    if last not in ("user", "tool"):
        refuse(f"{name}[{len(found) - 1}].role", f"is {last}; the last message must be the user's.")
    return tool_calls.in_order(read, [f"{name}[{i}].tool_call_id" for i in range(len(read))])


def _message(value: Any, path: str, reader: Reader, tools: bool) -> tool_calls.Read:
    fields = reader.inside(value, path)
    roles = (*_ROLES, "tool") if tools else _ROLES
    role = fields.word("role", roles)
    if role is None:
        refuse(f"{path}.role", f"is missing; choose one of {', '.join(roles)}.")
    ids, calls = _calls(fields, role, tools)
    for name in ("function_call", "audio"):
        fields.only(name, (), "leave it out")
    fields.unused("name")
    fields.only("refusal", (), "write it as content")
    content = text(fields, "content", content="" if calls and fields.value("content") is None else None)
    thoughts = [
        (name, thought) for name in ("reasoning", "reasoning_content") if (thought := fields.text(name)) is not None
    ]
    if len(thoughts) == 2 and thoughts[0][1] != thoughts[1][1]:
        refuse(f"{path}.reasoning", f"and {path}.reasoning_content differ; keep one of them.")
    try:
        role = "system" if role == "developer" else role
        message = Message(role, content, thoughts[0][1] if thoughts else None, calls)  # type: ignore[arg-type]
    except UserError as error:
        raise ApiError(f"{path}: {error}", path) from None
    return message, ids


def _calls(fields: Reader, role: str, tools: bool) -> tuple[Sequence[str], tuple[ToolCall, ...]]:
    """Reads the calls of a message, or the id of the call whose result it is."""
    if not tools:
        fields.only("tool_calls", ([],), tool_calls.NO_TOOLS)
        return (), ()
    if role != "tool":
        fields.only("tool_call_id", (), "leave it out")
    if role == "assistant":
        return tool_calls.said(fields)
    fields.only("tool_calls", ([],), "leave it out")
    if role != "tool":
        return (), ()
    answered = fields.text("tool_call_id")
    return [answered or refuse(fields.path("tool_call_id"), "is missing; write the id of the call.")], ()


def text(reader: Reader, name: str, kinds: Sequence[str] = ("text",), content: Any = None) -> str:
    """Reads a text: a string, or a list of parts that have one.

    Args:
      reader: of the object that has the field.
      name: of the field.
      kinds: types of parts that are read.
      content: in place of the field's value.
    """
    value, path = reader.value(name, text_schema(kinds)), reader.path(name)
    content = value if content is None else content
    if content is None:
        refuse(path, "is missing; write a string.")
    if not isinstance(content, list):
        return string(content, path)
    return "".join(_part(reader, each, f"{path}[{i}]", kinds) for i, each in enumerate(content))


def text_schema(kinds: Sequence[str] = ("text",)) -> dict[str, Any]:
    """Returns the JSON schema of what `text` reads."""
    string = {"type": "string"}
    part = {
        "type": "object", "required": ["type", "text"],
        "properties": {"type": {"enum": list(kinds)}, "text": string},
    }  # fmt: skip
    return {"anyOf": [string, {"type": "array", "items": part}]}


def _part(reader: Reader, value: Any, path: str, kinds: Sequence[str]) -> str:
    fields = reader.inside(value, path)
    if fields.word("type", kinds) is None:
        refuse(f"{path}.type", f"is missing; choose one of {', '.join(kinds)}.")
    found = fields.text("text")
    return refuse(f"{path}.text", "is missing; write a string.") if found is None else found


def whole(call: Call, results: Sequence[Result], count: Count = Usage.of) -> dict[str, Any]:
    """Returns the reply.

    Args:
      call: the request.
      results: of its choices, in order.
      count: counts tokens and money.
    """
    choices = [
        {"index": i, "message": _said(call, i, result), **_end(call, result)} for i, result in enumerate(results)
    ]
    return {
        **_head(call, "chat.completion", results), "choices": choices, "usage": count(call, results).openai(),
    }  # fmt: skip


def fail(error: ApiError) -> dict[str, Any]:
    """Returns the body of an error."""
    return error.body()


class Stream(protocol.OpenAIStream):
    """Writes the chunks of a streamed reply."""

    def __init__(self, call: Call, count: Count = Usage.of):
        """Takes the request and what counts tokens and money."""
        self._call, self._count = call, count
        self._splitters = [tool_calls.Splitter(call) for _ in range(call.num_choices)]

    def begin(self) -> list[Event]:
        """Returns the first chunk of every choice."""
        first = {"role": "assistant", "content": ""}
        return [self._chunk(i, first) for i in range(self._call.num_choices)]

    def piece(self, index: int, piece: Piece) -> list[Event]:
        """Returns the chunk of a piece of a choice; none if it has no text to send."""
        if not piece.text or (piece.part == "thinking" and not self._call.include_reasoning):
            return []
        forced = {"forced": True} if piece.forced else {}
        if piece.part == "thinking":
            return [self._chunk(index, {**dict.fromkeys(self._call.reasoning_names, piece.text), **forced})]
        return self._parts(index, self._splitters[index].add(piece.text), forced)

    def _parts(self, index: int, parts: Sequence[str | tuple[int, ToolCall]], forced: Mapping[str, Any]) -> list[Event]:
        """Returns the chunks of parts of an answer."""
        events = []
        for part in parts:
            if isinstance(part, str):
                events.append(self._chunk(index, {"content": part, **forced}))
            else:
                made = {"index": part[0], **tool_calls.tool_call_object(self._call, index, *part)}
                events.append(self._chunk(index, {"tool_calls": [made]}))
        return events

    def end(self, results: Sequence[Result]) -> list[Event]:
        """Returns the last chunk of every choice, and the count of tokens if it is asked for."""
        events: list[Event] = []
        for i, result in enumerate(results):
            events += self._parts(i, self._splitters[i].finish(), {})
            head = _head(self._call, "chat.completion.chunk", results)
            events.append(("", {**head, "choices": [{"index": i, "delta": {}, **_end(self._call, result)}]}))
        if self._call.include_usage:
            usage = self._count(self._call, results).openai()
            events.append(("", {**_head(self._call, "chat.completion.chunk", ()), "choices": [], "usage": usage}))
        return events

    def _chunk(self, index: int, delta: Mapping[str, Any]) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return "", {**_head(self._call, "chat.completion.chunk", ()), "choices": [choice]}


def _head(call: Call, kind: str, results: Sequence[Result]) -> dict[str, Any]:
    """The fields beside the choices."""
    first = results[0] if results else None
    head = {
        "id": call.id, "object": kind, "created": call.created, "model": (first and first.model) or call.model,
    }  # fmt: skip
    return {**head, "handoff": dict(first.handoff)} if first and first.handoff else head


def _said(call: Call, index: int, result: Result) -> dict[str, Any]:
    """The message of a choice."""
    thinking = dict.fromkeys(call.reasoning_names, result.output.thinking) if call.include_reasoning else {}
    content, found = tool_calls.split(call, result.output.answer)
    calls = [tool_calls.tool_call_object(call, index, number, each) for number, each in enumerate(found)]
    made = {"tool_calls": calls} if calls else {}
    return {"role": "assistant", "content": content if content or not calls else None, **thinking, **made}


def _end(call: Call, result: Result) -> dict[str, Any]:
    """What is known of a choice when it is finished; `seed` gives the same choice again."""
    output = result.output
    is_call = output.answer_end == "stop" and bool(tool_calls.split(call, output.answer)[1])
    return {
        "logprobs": _logprobs(result) if call.logprobs else None,
        "finish_reason": "tool_calls" if is_call else output.answer_end,
        "stop_reason": output.stop_reason,
        "thinking": result.thinking(),
        "seed": output.params.seed,
    }


def _logprobs(result: Result) -> dict[str, Any]:
    """Log-probabilities of the answer's tokens; 0 for forced ones."""
    content = []
    for place in result.answer:
        token = result.token_texts[place]
        content.append({
            "token": token,
            "logprob": result.output.logprobs[place],
            "bytes": None if "\ufffd" in token else list(token.encode()),  # part of a character
            "top_logprobs": [],
        })  # fmt: skip
    return {"content": content, "refusal": None}
