"""Reads the messages of a conversation in the forms of OpenAI, TRL and ShareGPT.

Thinking of an assistant is in `<think>...</think>` at the start of its text (the first tag may be missing, because R1's
template puts it into the prompt), in `<|begin_of_thought|>...<|end_of_thought|>` (OpenThoughts, Bespoke-Stratos), or in
a field `reasoning_content`, `reasoning` or `thinking` next to the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.text.messages import Message, Role

TAGS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
THINKING = ("reasoning_content", "reasoning", "thinking")
UNUSABLE = ("tools", "functions", "tool_calls", "function_call", "images", "image", "audio", "videos")
_SOLUTION = "<|begin_of_solution|>", "<|end_of_solution|>"  # around the answer, where the second tags are used
_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
# Fields that exclude an assistant's message from the loss: of OpenAI and Mistral, of Axolotl, of ms-swift.
_LOSS = ("weight", "train", "training", "loss")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
      role: `system`, `user` or `assistant`, whatever it was called.
      content: text, with the tags that it has.
      fields: all fields of the message that are not None.
      name: where it stands, for messages.
    """

    role: Role
    content: str
    fields: Mapping[str, Any]
    name: str

    @property
    def excluded(self) -> str:
        """The field that excludes the message from the loss, with its value; empty if none does."""
        return next((f"{key} {self.fields[key]!r}" for key in _LOSS if self.fields.get(key, 1) != 1), "")

    @property
    def has_thinking(self) -> bool:
        """Whether there is thinking that is not blank, in a field or closed by a tag."""
        beside = any(str(self.fields[key]).strip() for key in THINKING if key in self.fields)
        inside = [self.content.partition(end)[0].replace(start, "") for start, end in TAGS if end in self.content]
        return beside or any(thought.strip() for thought in inside)

    def message(self) -> Message:
        """Returns the message as a client would send it back to a server, OpenThoughts' tags taken out.

        Raises:
          UserError: if thinking is not text.
        """
        if self.role != "assistant":
            return Message(self.role, self.content)
        thinking = next((self.fields[key] for key in THINKING if key in self.fields), None)
        if thinking is None and TAGS[1][1] in self.content:
            return _in_field(self.content, self.name)
        if thinking is not None and not isinstance(thinking, str):
            raise UserError(f"{self.name}: the thinking is {type(thinking).__name__}, not text; write it as a string.")
        return Message("assistant", self.content, thinking)


def read(messages: Any, column: str, name: str) -> list[Turn]:
    """Returns the messages of a column in order.

    Raises:
      UserError: for what is not a list of messages, an unknown role, content that is not text, tools, images, thinking
        in a turn of another role than the assistant's, or a weight that is neither 0 nor 1.
    """
    found = [_turn(message, f"{name}: {column}[{i}]") for i, message in enumerate(as_list(messages, column, name))]
    for turn in found:
        thought = next((key for key in THINKING if turn.fields.get(key)), None)
        if turn.role != "assistant" and thought:
            raise UserError(
                f"{turn.name} has {thought}, which cannot be used in a {turn.role} turn; remove it or the row."
            )
    return found


def as_list(value: Any, column: str, name: str) -> list[Any]:
    """Returns a column that is a list of messages; raises UserError for another value."""
    if not isinstance(value, list):
        raise UserError(f"{name}: column {column} is {type(value).__name__}, not a list of messages; repair it.")
    return value


def split(text: Any, fields: Mapping[str, Any], name: str) -> tuple[str, str, tuple[str, ...]]:
    """Splits an assistant's text into trace and answer; also returns the field that contains the trace.

    Args:
      text: of the message, with or without tags.
      fields: next to the text.
      name: what messages call the text.

    Raises:
      UserError: if there is no thinking, it is in two places, or a part is not text.
    """
    if not isinstance(text, str):
        raise UserError(f"{name} is {type(text).__name__}, not text; write it as a string.")
    beside = [key for key in THINKING if key in fields and fields[key] != ""]
    if len({str(fields[key]) for key in beside}) > 1:
        raise UserError(f"{name}: {' and '.join(beside)} differ; keep one of them.")
    start, end = next(((start, end) for start, end in TAGS if end in text), ("", ""))
    if beside and end and text.lstrip().startswith(start):
        raise UserError(f"{name} has its thinking in {beside[0]} as well as in {start} tags; keep one of them.")
    if beside:
        trace = fields[beside[0]]
        if not isinstance(trace, str):
            raise UserError(f"{name}: {beside[0]} is {type(trace).__name__}, not text; write it as a string.")
        return trace, text, (beside[0],)
    if not end:
        cut = next((tag for tag, _ in TAGS if text.lstrip().startswith(tag)), "")
        why = f"begins with {cut}, which is never closed" if cut else f"has no thinking: no {TAGS[0][0]} tags"
        raise UserError(f"{name} {why} and no field {', '.join(THINKING)}; add it or remove the row.")
    trace, answer = text.split(end, 1)
    before, tag, inside = trace.partition(start)
    if tag:
        if before.strip():
            raise UserError(f"{name} has text before {start}: {before.strip()[:40]!r}; remove it or the row.")
        trace = inside
    if end == TAGS[1][1]:
        answer = answer.strip().removeprefix(_SOLUTION[0]).removesuffix(_SOLUTION[1])
    return trace, answer, ()


def without_tags(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Returns messages with the thinking of assistants in its own field, for formats whose templates know no tags.

    A text whose first tag is not at its start, or is never closed, stays as it was written.
    """
    tagged = (m.role == "assistant" and m.thinking is None and TAGS[0][1] in m.content for m in messages)
    return tuple(_in_field(m.content, "") if has else m for m, has in zip(messages, tagged, strict=True))


def _in_field(content: str, name: str) -> Message:
    try:
        trace, answer, _ = split(content, {}, name)
    except UserError:  # of earlier turns, which carry no loss, nothing is asked
        return Message("assistant", content)
    return Message("assistant", answer.strip(), trace.strip())


def _turn(message: Any, name: str) -> Turn:
    """Reads a message of either form."""
    if not isinstance(message, dict):
        raise UserError(f"{name} is {type(message).__name__}, not an object with role and content; repair it.")
    fields = {key: value for key, value in message.items() if value is not None}
    for key in UNUSABLE:
        if fields.get(key):
            raise UserError(f"{name} has {key}, which cannot be used; remove the row.")
    said = fields.get("role", fields.get("from"))
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise UserError(f"{name} has the role {said!r}; system, user and assistant (or human and gpt) are known.")
    for key in _LOSS:
        if role == "assistant" and key in fields and fields[key] not in (0, 1):
            raise UserError(
                f"{name} has {key} {fields[key]!r:.40}; an assistant's message is trained on with weight 1 or not at"
                " all (0); change the field or remove the row."
            )
    content = fields.get("content", fields.get("value", ""))
    if isinstance(content, list):  # of typed parts, as OpenAI's and Anthropic's clients write it
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        other = [kind for kind in kinds if kind not in ("text", "thinking")]
        if other:
            raise UserError(f"{name} has content of type {other[0]!r}; text alone can be used; remove the row.")
        thinking = [part.get("thinking") for part in content if part["type"] == "thinking"]
        if thinking and "thinking" not in fields:
            fields["thinking"] = "\n".join(map(str, thinking))
        content = "".join(str(part.get("text", "")) for part in content if part["type"] == "text")
    if not isinstance(content, str):
        raise UserError(f"{name} has content of type {type(content).__name__}, not text; write it as a string.")
    return Turn(role, content, fields, name)
