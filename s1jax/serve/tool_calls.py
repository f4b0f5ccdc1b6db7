"""Tools in the APIs for chats: those that a request offers, and the calls of them in messages and answers."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.serve.protocol import Call, Defaults
from s1jax.serve.reader import Reader, refuse, shown, string
from s1jax.text import tools
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall

NAMES = ("tools", "tool_choice", "parallel_tool_calls")
NO_TOOLS = "leave it out, because the chat format of this model has no tools"
AUTO = "write auto, because a call that must come needs constrained decoding"
_CHOICES = ("none", "auto")
_DEEP = 100  # levels of JSON; Python's own limit hangs on where it is written
_NESTED = (Mapping, list)
NAME = {"type": "string", "minLength": 1}
_OBJECT, _TEXT = {"type": ["object", "null"]}, {"type": ["string", "null"]}
TOOL = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": NAME, "description": _TEXT, "parameters": _OBJECT, "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}  # fmt: skip
_FUNCTION = {
    "type": "object", "required": ["name", "arguments"], "properties": {"name": NAME, "arguments": {"type": "string"}},
}  # fmt: skip
# Of a call in a message; its arguments are a JSON object as a string.
CALL = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {"id": NAME, "type": {"enum": ["function"]}, "function": _FUNCTION},
}

# A message as it was read, with the ids of its calls, or the id of the call whose result it is.
Read = tuple[Message, Sequence[str]]


def names(defaults: Defaults) -> tuple[str, ...]:
    """The fields that `read` reads."""
    return NAMES if defaults.tools else NAMES[:2]


def read(reader: Reader, defaults: Defaults) -> dict[str, Any]:
    """Reads the tools of a request as fields of `Call`.

    With the choice `none` the prompt does not speak of them, and the answer is text.
    """
    if not defaults.tools:
        reader.only("tools", ([],), NO_TOOLS)
        reader.only("tool_choice", _CHOICES, NO_TOOLS)
        return {}
    reader.only("tool_choice", _CHOICES, AUTO)
    offered = reader.items("tools") or []
    reader.value("tools", {"type": ["array", "null"], "items": TOOL})
    found = tuple(_tool(tool, f"tools[{i}]", reader) for i, tool in enumerate(offered))
    parallel = reader.flag("parallel_tool_calls")
    return {"tools": found if reader.value("tool_choice") != "none" else (), "one_tool_call": parallel is False}


def _tool(value: Any, path: str, reader: Reader) -> Mapping[str, Any]:
    """Checks a tool, which goes into the prompt in the words of the request."""
    _, function = _of_type(value, path)
    _named(function)
    function.text("description")
    function.group("parameters")
    if function.flag("strict"):
        ignored = reader.groups[f"{path}.function"] = Reader({"strict": True}, f"{path}.function")
        ignored.unused("strict")  # arguments are the model's, whatever the schema says
    written(value, path)
    return value


def written(value: Any, path: str) -> str:
    """Returns a value of the request as JSON.

    Raises:
      ApiError: 400, it is nested deeper than prompts have it, or has half of a character.
    """
    level = [value]
    for _ in range(_DEEP):
        inside = [each.values() if isinstance(each, Mapping) else each for each in level if isinstance(each, _NESTED)]
        level = [value for each in inside for value in each]
    if level:
        refuse(path, f"is nested more than {_DEEP} levels deep; send fewer levels.")
    return string(json.dumps(value, ensure_ascii=False), path)


def _of_type(value: Any, path: str) -> tuple[Reader, Reader]:
    """Returns readers of an object of the type `function`, and of its field of that name."""
    if not isinstance(value, Mapping):
        refuse(path, f"is {shown(value)}; it must be an object.")
    fields = Reader(value, path)
    if fields.word("type", ("function",)) is None:
        refuse(f"{path}.type", "is missing; write function.")
    function = fields.group("function")
    return fields, function or refuse(f"{path}.function", "is missing; write an object with a name.")


def _named(fields: Reader) -> str:
    """Returns the name of a tool."""
    return fields.text("name") or refuse(fields.path("name"), "is missing; write a name.")


def said(fields: Reader) -> tuple[list[str], tuple[ToolCall, ...]]:
    """Reads the field `tool_calls` of a message of the assistant; returns the ids of the calls, and the calls."""
    given = fields.items("tool_calls") or []
    fields.value("tool_calls", {"type": ["array", "null"], "items": CALL})
    ids: list[str] = []
    found = []
    for i, value in enumerate(given):
        each, function = _of_type(value, f"{fields.path('tool_calls')}[{i}]")
        ids.append(each.text("id") or refuse(each.path("id"), "is missing; write that of the reply."))
        arguments = function.text("arguments")
        if arguments is None:
            refuse(function.path("arguments"), "is missing; write a JSON object as a string.")
        found.append(tool_call(_named(function), arguments, function.path("arguments")))
    if len(set(ids)) < len(ids):
        refuse(fields.path("tool_calls"), "has an id twice; each call needs its own.")
    return ids, tuple(found)


def tool_call(name: str, arguments: str, path: str) -> ToolCall:
    """Returns a call of a message; `path` is that of the arguments, a JSON object as text, empty for one of nothing."""
    try:
        return ToolCall(name, arguments.strip() or "{}")
    except UserError:
        refuse(path, f"is {shown(arguments)}; it must be a JSON object, written as a string.")


def in_order(conversation: Sequence[Read], paths: Sequence[str]) -> tuple[Message, ...]:
    """Returns the messages, with results in the order of their calls: the chat template shows them without ids.

    Args:
      conversation: the messages.
      paths: where each of them has the id of the call whose result it is.
    """
    found: list[Message] = []
    waiting: dict[str, int] = {}  # calls of the assistant's last message that have no result yet, and their places
    results: list[tuple[int, Message]] = []
    for (message, ids), path in zip(conversation, paths, strict=True):
        if message.role == "tool":
            place = waiting.pop(ids[0], None)
            if place is None:
                refuse(path, "is the id of no call that waits for a result; results follow the message that calls.")
            results.append((place, message))
            continue
        found += [result for _, result in sorted(results, key=operator.itemgetter(0))]
        results, waiting = [], {id_: place for place, id_ in enumerate(ids)}
        found.append(message)
    return (*found, *(result for _, result in sorted(results, key=operator.itemgetter(0))))


def split(call: Call, answer: str) -> tuple[str, list[ToolCall]]:
    """Returns the text of an answer, and the calls in it."""
    if not call.tools:
        return answer, []
    text, found = tools.parse(answer)
    return text, found[:1] if call.one_tool_call else found


def identity(call: Call, index: int, number: int, prefix: str = "call_") -> str:
    """Returns the id of a call: the `number`th of a choice. OpenAI's own server takes no more than 40 characters."""
    return f"{prefix}{call.id.rpartition('_' if call.api == 'messages' else '-')[2][:24]}_{index}_{number}"


class Splitter:
    """Separates text and calls in a streamed answer; all of them together are those of `split`."""

    def __init__(self, call: Call):
        """Takes the request."""
        self._reader = tools.Reader() if call.tools else None
        self._most = 1 if call.one_tool_call else None
        self._count = 0

    def add(self, text: str) -> list[str | tuple[int, ToolCall]]:
        """Returns the texts that are sure and the new calls, with their numbers."""
        return self._numbered(self._reader.add(text)) if self._reader else [text]

    def finish(self) -> list[str | tuple[int, ToolCall]]:
        """Returns the rest at the end of the answer."""
        return self._numbered(self._reader.finish()) if self._reader else []

    def _numbered(self, parts: Sequence[str | ToolCall]) -> list[str | tuple[int, ToolCall]]:
        found: list[str | tuple[int, ToolCall]] = []
        for part in parts:
            if isinstance(part, str):
                found.append(part)
            elif self._most is None or self._count < self._most:
                found.append((self._count, part))
                self._count += 1
        return found


def tool_call_object(call: Call, index: int, number: int, made: ToolCall) -> dict[str, Any]:
    """Returns a call as OpenAI's API has it."""
    function = {"name": made.name, "arguments": made.arguments}
    return {"id": identity(call, index, number), "type": "function", "function": function}
