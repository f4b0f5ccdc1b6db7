"""Tools in the API of Anthropic: definitions, and the blocks of calls and results in messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.serve import tool_calls
from s1jax.serve.protocol import Defaults
from s1jax.serve.reader import Reader, refuse, shown
from s1jax.text.messages import Message
from s1jax.text.tools import ToolCall

NAMES = ("tools", "tool_choice")
_TEXT = {"type": ["string", "null"]}
_TOOL = {
    "type": "object",
    "required": ["name", "input_schema"],
    "properties": {
        "type": {"enum": ["custom", None]}, "name": tool_calls.NAME, "description": _TEXT,
        "input_schema": {"type": "object"}, "strict": {"type": ["boolean", "null"]},
    },
}  # fmt: skip
# Blocks of messages; a result's content is text, see `s1jax.serve.openapi`.
USE = {
    "type": "object",
    "required": ["type", "id", "name", "input"],
    "properties": {
        "type": {"enum": ["tool_use"]}, "id": tool_calls.NAME, "name": tool_calls.NAME, "input": {"type": "object"},
    },
}  # fmt: skip
RESULT = {
    "type": "object",
    "required": ["type", "tool_use_id"],
    "properties": {
        "type": {"enum": ["tool_result"]}, "tool_use_id": tool_calls.NAME, "is_error": {"type": ["boolean", "null"]},
    },
}  # fmt: skip


def read(reader: Reader, defaults: Defaults) -> dict[str, Any]:
    """Reads the tools of a request as fields of `Call`."""
    if not defaults.tools:
        reader.only("tools", ([],), tool_calls.NO_TOOLS)
        reader.only("tool_choice", ({"type": "none"}, {"type": "auto"}), tool_calls.NO_TOOLS)
        return {}
    choice = reader.group("tool_choice") or reader.groups["tool_choice"]
    choice.only("type", ("none", "auto"), tool_calls.AUTO)
    one = choice.flag("disable_parallel_tool_use")
    offered = reader.items("tools") or []
    reader.value("tools", {"type": ["array", "null"], "items": _TOOL})
    found = tuple(_tool(tool, f"tools[{i}]", reader) for i, tool in enumerate(offered))
    return {"tools": found if choice.value("type") != "none" else (), "one_tool_call": bool(one)}


def _tool(value: Any, path: str, reader: Reader) -> Mapping[str, Any]:
    """Returns a tool as OpenAI's API has it, which is what the chat template writes."""
    fields = reader.inside(value, path)
    fields.word("type", ("custom",))
    function: dict[str, Any] = {"name": _needed(fields, "name")}
    description = fields.text("description")
    if description is not None:
        function["description"] = description
    function["parameters"], _ = _object(fields, "input_schema")
    if fields.flag("strict"):
        fields.unused("strict")
    fields.unused("cache_control", "input_examples", "eager_input_streaming")
    return {"type": "function", "function": function}


def _needed(fields: Reader, name: str) -> str:
    return fields.text(name) or refuse(fields.path(name), "is missing; write a string.")


def _object(fields: Reader, name: str) -> tuple[dict[str, Any], str]:
    """Returns an object, and its JSON."""
    value, path = fields.value(name), fields.path(name)
    if not isinstance(value, dict):
        refuse(path, f"is {shown(value)}; it must be an object.")
    return value, tool_calls.written(value, path)


def uses(reader: Reader, blocks: Sequence[tuple[str, Any]]) -> tuple[list[str], tuple[ToolCall, ...]]:
    """Reads blocks of the type `tool_use` with their paths; returns the ids of the calls, and the calls."""
    ids, found = [], []
    for path, block in blocks:
        fields = reader.inside(block, path)
        fields.value("type")
        ids.append(_needed(fields, "id"))
        if ids[-1] in ids[:-1]:
            refuse(f"{path}.id", "is that of another call; each call needs its own.")
        _, arguments = _object(fields, "input")
        found.append(tool_calls.tool_call(_needed(fields, "name"), arguments, f"{path}.input"))
        fields.unused("cache_control", "caller")
    return ids, tuple(found)


def result(reader: Reader, path: str, block: Any, text: Any) -> tool_calls.Read:
    """Reads a block of the type `tool_result`.

    Args:
      reader: of the request.
      path: of the block.
      block: the block.
      text: reads the text in the field `content` of a reader.
    """
    fields = reader.inside(block, path)
    fields.value("type")
    id_ = _needed(fields, "tool_use_id")
    content = text(fields, "content") if fields.value("content") is not None else ""
    if fields.flag("is_error"):
        fields.unused("is_error")  # the chat template has no place for it
    fields.unused("cache_control")
    return Message("tool", content), [id_]


def block_of(id_: str, made: ToolCall) -> dict[str, Any]:
    """Returns the block of a call in a reply."""
    return {"type": "tool_use", "id": id_, "name": made.name, "input": json.loads(made.arguments)}
