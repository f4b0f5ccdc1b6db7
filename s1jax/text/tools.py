"""Tools as Qwen3's chat template writes them: their descriptions, the calls of the assistant, the results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.config.schema import shown
from s1jax.errors import UserError
from s1jax.text.backends import Piece
from s1jax.text.chat import own

_BEGIN, _END = "<tool_call>", "</tool_call>"
_RESULT = ("<tool_response>", "</tool_response>")
# Word for word the template's, because models were trained with it.
_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within"
    ' <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """One call of a tool by the assistant.

    Attributes:
      name: of the tool.
      arguments: a JSON object as text, character for character as the model wrote it, so that the next prompt repeats
        the tokens of the sample.

    Raises:
      UserError: if the name is empty, or the arguments are not the text of a JSON object.
    """

    name: str
    arguments: str = "{}"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"a tool call has the name {shown(self.name)}; it must be a string that is not empty.")
        if not isinstance(self.arguments, str) or not isinstance(_loaded(self.arguments), dict):
            raise UserError(
                f"the call of the tool {shown(self.name)} has the arguments {shown(self.arguments)}; they must be a"
                " JSON object, written as a string."
            )


def check(tools: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError unless every tool is a mapping that JSON can hold."""
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise UserError(f"tools is {shown(tools)}; give a list of JSON objects, one for each function.")
    for tool in tools:
        if not isinstance(tool, Mapping) or not tool:
            raise UserError(f"a tool is {shown(tool)}; it must be a JSON object that describes a function.")
        try:
            _dumped(tool)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"a tool cannot be written as JSON ({error}); repair its description.") from None


def description(tools: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """Returns what the system turn says about one tool or more."""
    listed = [piece for tool in tools for piece in (own("\n"), Piece(_dumped(tool)))]
    return [own(_BEFORE_TOOLS), *listed, own(_AFTER_TOOLS)]


def calls(content: str, tool_calls: Sequence[ToolCall]) -> list[Piece]:
    """Returns the calls that follow the content of an assistant message."""
    pieces = []
    for i, call in enumerate(tool_calls):
        start = "\n" if content or i else ""
        pieces += [own(f'{start}{_BEGIN}\n{{"name": "'), Piece(call.name), own('", "arguments": ')]
        pieces += [Piece(call.arguments), own(f"}}\n{_END}")]
    return pieces


def result(content: str) -> list[Piece]:
    """Returns the result of one call, which follows the name of the user's turn or another result."""
    return [own(f"\n{_RESULT[0]}\n"), Piece(content), own(f"\n{_RESULT[1]}")]


def is_result(content: str) -> bool:
    """Whether the template takes a user message for results of tools, because somebody wrote it so."""
    return content.startswith(_RESULT[0]) and content.endswith(_RESULT[1])


def parse(answer: str) -> tuple[str, list[ToolCall]]:
    """Returns the text of an answer without its calls, and the calls. What is not a whole call stays text."""
    reader = Reader()
    found = reader.add(answer) + reader.finish()
    return "".join(part for part in found if isinstance(part, str)), [p for p in found if isinstance(p, ToolCall)]


class Reader:
    """Reads the calls in an answer that comes in pieces.

    The parts of all pieces are those of `parse` for the whole answer. Text is late where it may become a call: from
    `<tool_call>` on, and the newline before it, which belongs to the call.
    """

    def __init__(self) -> None:
        self._rest = ""  # not yet returned
        self._gap: str | None = None  # white space after a call; None: there is none
        self._from = 0  # where in the rest to look for the end of a call

    def add(self, text: str) -> list[str | ToolCall]:
        """Returns the new texts and calls in order."""
        self._rest += text
        found: list[str | ToolCall] = []
        while True:
            begin = self._rest.find(_BEGIN)
            if begin < 0:
                return found + self._text(len(self._rest) - _held_back(self._rest))
            found += self._text(begin - self._rest[:begin].endswith("\n"))
            begin = self._rest.index(_BEGIN) + len(_BEGIN)
            end = self._rest.find(_END, max(begin, self._from))
            if end < 0:
                return found
            call = _call(self._rest[begin:end])
            if call is not None:
                found.append(call)
                self._rest, self._gap, self._from = self._rest[end + len(_END) :], "", 0
            elif 0 <= (other := self._rest.find(_BEGIN, begin)) < end:
                found += self._text(other - self._rest[:other].endswith("\n"))
            else:  # a string in the arguments may hold this end
                self._from = end + 1

    def finish(self) -> list[str | ToolCall]:
        """Returns what is left when the answer has ended."""
        begin = self._rest.find(_BEGIN)
        call = _call(self._rest[begin + len(_BEGIN) :]) if begin >= 0 else None
        if call is not None:  # the answer ended before the end of the call was written
            return [*self._text(begin - self._rest[:begin].endswith("\n")), call]
        return self._text(len(self._rest))

    def _text(self, count: int) -> list[str | ToolCall]:
        """Returns the first characters of the rest, without white space between and after calls."""
        text, self._rest, self._from = self._rest[:count], self._rest[count:], max(0, self._from - count)
        if self._gap is not None:
            text = self._gap + text
            self._gap = None if text.strip() else text
        return [text] if text and self._gap is None else []


def _held_back(text: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of a call."""
    sizes = range(min(len(text), len(_BEGIN) - 1), 0, -1)
    tag = next((size for size in sizes if text.endswith(_BEGIN[:size])), 0)
    return tag + text[: len(text) - tag].endswith("\n")


def _call(body: str) -> ToolCall | None:
    """Returns the call that is written between two tags, or None."""
    fields = _fields(body.strip())
    name, arguments = (_loaded(fields.get(key, default)) for key, default in (("name", '""'), ("arguments", "{}")))
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, fields.get("arguments", "{}"))


def _fields(text: str) -> dict[str, str]:
    """Returns the values of a JSON object as they are written; none for another text."""
    if not isinstance(_loaded(text), dict):
        return {}
    decoder, found, at = json.JSONDecoder(), {}, text.index("{") + 1
    while (at := _after_space(text, at)) < len(text) and text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _after_space(text, text.index(":", at) + 1)
        _, at = decoder.raw_decode(text, start)
        found[key] = text[start:at]
        at = _after_space(text, at)
        at += text[at] == ","
    return found


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
