"""Encodes conversations of several messages in a chat format.

A conversation is written as the published chat template of the format's models writes it. Thinking of earlier assistant
messages (`ChatFormat.earlier_thinking`):

- `last_turn`: kept only after the last user message, where a model has called tools. The rest of it is dropped.
- `drop`: dropped.
- `keep`: kept, where a message has it. Most of these models have no template that says what to do. Kept thinking is
  what they were trained to write before an answer, and the prompt of a turn then begins with all tokens of the turn
  before it, prompt and sample, so that a prefix cache holds them.

Assistant messages without thinking have their content alone. Where an assistant message of the first two has its
thinking inside the content, up to `think_end`, it is taken from there, as the templates do.

All text of messages is encoded as text: special tokens written in it stay text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.errors import UserError
from s1jax.text import chat
from s1jax.text import tools as tools_lib
from s1jax.text.backends import Piece
from s1jax.text.chat import ChatFormat, own
from s1jax.text.messages import SYSTEM_ROLES, Message
from s1jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Turns:
    """The strings around the messages of a chat format.

    Attributes:
      start: from the start of the text to the first message, with the format's default system turn.
      user: before a user's text. Empty if the format has one turn only.
      user_end: after a user's text.
      assistant: before the text of the assistant, thinking included.
      answer: between `assistant` and a text without thinking.
      end: after the text of the assistant.
    """

    start: str
    user: str
    user_end: str
    assistant: str
    answer: str
    end: str


def turns(fmt: ChatFormat) -> Turns:
    """Returns the strings around messages, as the prompt for one question has them."""
    end = fmt.earlier_end or fmt.turn_end + fmt.after_turn
    user = fmt.user_start
    if not user:
        try:
            user = chat.system_turn(fmt)[1].removeprefix(end)
        except UserError:
            user = fmt.before_question
    user_end = end if fmt.after_question.startswith(end) else ""
    assistant = fmt.after_question.removeprefix(user_end)
    if not assistant or not fmt.before_question.endswith(user):
        user = ""
    return Turns(fmt.before_question.removesuffix(user), user, user_end, assistant, fmt.earlier_start, end)


def earlier_thinking(fmt: ChatFormat) -> str:
    """Returns the field of that name; formats of earlier releases have it empty, which is decided by their strings."""
    if fmt.earlier_thinking:
        return fmt.earlier_thinking
    if fmt.think_end != "</think>":
        return "keep"
    return "last_turn" if turns(fmt).user.startswith("<|im_start|>") else "drop"


def encode(
    tokenizer: Tokenizer, fmt: ChatFormat, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Returns the token ids of a conversation, from the start of the text to the end of the last assistant header.

    Args:
      tokenizer: has the format's special tokens, see `chat.check`.
      fmt: the strings around the messages.
      messages: the last one is the user's or of the role `tool`. A first system message replaces the format's own,
        unless it is empty.
      tools: JSON schemas of the functions that the assistant may call, as OpenAI's API has them.

    Raises:
      UserError: if the format has no place for the messages or tools, or the tokenizer cannot encode a text.
    """
    if not messages or messages[-1].role not in ("user", "tool"):
        last = f"that of the role {messages[-1].role}" if messages else "missing"
        raise UserError(
            f"the last message is {last}; it must be the user's, because an answer begins with thinking of its own."
        )
    tools_lib.check(tools)
    system, rest = split_system(messages)
    if (tools or any(message.role == "tool" or message.tool_calls for message in rest)) and not has_tools(fmt):
        raise UserError(
            f"the chat format, whose thinking ends with {fmt.think_end!r}, has no place for tools; leave out tools, or"
            " use a model with Qwen3's chat format."
        )
    if len(rest) == 1 and rest[0].role == "user" and not tools:
        return chat.encode_prompt(tokenizer, fmt, rest[0].content, system)
    parts = _parts(fmt, system, rest, tools)
    return list(itertools.chain.from_iterable(chat.encode_parts(tokenizer, *parts)))


def encode_row(
    tokenizer: Tokenizer, fmt: ChatFormat, messages: Sequence[Message], trace: str, answer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes one training example: the ids of `encode` for `messages`, then those of the trace and the answer.

    Args:
      tokenizer: has the format's special tokens, see `chat.check`.
      fmt: the strings around the messages.
      messages: the last one is the user's; no calls of tools.
      trace: as for `chat.encode_row`.
      answer: as for `chat.encode_row`.

    Returns:
      token ids int32 [n], and bool [n]: the tokens that carry loss, those after the last assistant header.

    Raises:
      UserError: as `encode`.
    """
    system, rest = split_system(messages)
    if len(rest) == 1:
        return chat.encode_row(tokenizer, fmt, rest[0].content, trace, answer, system)
    return chat.with_response(tokenizer, fmt, _parts(fmt, system, rest, ()), trace, answer)


def has_tools(fmt: ChatFormat) -> bool:
    """Whether the format is Qwen3's, which has tools."""
    return earlier_thinking(fmt) == "last_turn" and bool(turns(fmt).user)


def default_system(fmt: ChatFormat) -> str:
    """Returns the system prompt that the format adds by itself; empty if it adds none.

    Raises:
      UserError: if the format has no system turn.
    """
    strings = turns(fmt)
    start, end = chat.system_turn(fmt)
    if not strings.start.startswith(start):
        return ""
    return strings.start.removeprefix(start).removesuffix(end.removesuffix(strings.user))


def split_system(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """Returns the text of the first message if that is a system message, else an empty one, and the other messages."""
    if messages and messages[0].role in SYSTEM_ROLES:
        return messages[0].content, list(messages[1:])
    return "", list(messages)


def _parts(
    fmt: ChatFormat, system: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> list[list[Piece]]:
    """Returns the parts of a conversation, cut where training rows are, so that its ids are those of its samples."""
    strings, kept_after = turns(fmt), _kept_after(fmt, messages)
    if not strings.user:
        prompt = fmt.before_question + "QUESTION" + fmt.after_question
        raise UserError(
            f"the chat format, whose prompts read {prompt!r}, has nothing that separates turns; give one user message,"
            " or a checkpoint with another chat format."
        )
    parts = [_start(fmt, system, tools)]
    opened = bool(system or tools) and system_opens_turn(fmt)
    if opened and messages[0].role != "user":
        raise UserError(
            "the chat format writes a system prompt into the first question; begin the conversation with a message of"
            " the user, or leave out the system prompt."
        )
    for i, message in enumerate(messages):
        if message.role == "user":
            begin = "" if opened and i == 0 else strings.user
            parts[-1] += [own(begin), Piece(message.content), own(strings.user_end)]
        elif message.role == "assistant":
            first, *more = _assistant(fmt, message, keep=i > kept_after)
            parts[-1] += [own(strings.assistant), *first]
            parts += more
        elif message.role == "tool":  # results of one assistant message share a turn
            begins, ends = (not 0 <= j < len(messages) or messages[j].role != "tool" for j in (i - 1, i + 1))
            parts[-1] += [own(strings.user.removesuffix("\n") if begins else ""), *tools_lib.result(message.content)]
            parts[-1].append(own(strings.user_end if ends else ""))
        else:
            parts[-1] += [own(later_system(fmt)), Piece(message.content), own(strings.end)]
    parts[-1].append(own(strings.assistant))
    return parts


def _start(fmt: ChatFormat, system: str, tools: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """Returns the pieces before the first message."""
    strings = turns(fmt)
    if not system and not tools:
        return [own(strings.start)]
    start, end = chat.system_turn(fmt)
    end = end.removesuffix(strings.user)
    text = Piece(system) if system else own(default_system(fmt))
    about = tools_lib.description(tools) if tools else []
    return [own(start), text, *([own("\n\n")] if text.text and about else []), *about, own(end)]


def _kept_after(fmt: ChatFormat, messages: Sequence[Message]) -> int:
    """Returns the place of the message after which thinking is kept, -1 for all of it."""
    if earlier_thinking(fmt) == "keep":
        return -1
    if earlier_thinking(fmt) == "drop":
        return len(messages)
    asked = [i for i, each in enumerate(messages) if each.role == "user" and not tools_lib.is_result(each.content)]
    return max(asked, default=len(messages))


def _assistant(fmt: ChatFormat, message: Message, *, keep: bool) -> list[list[Piece]]:
    """Returns the parts of an assistant message, what follows turn_end included."""
    how, thinking, content = earlier_thinking(fmt), message.thinking, message.content
    if fmt.think_end in content and (how == "drop" or (how == "last_turn" and thinking is None)):
        before, _, content = content.rpartition(fmt.think_end)
        if how == "last_turn":
            thinking = before.partition(fmt.think_end)[0].rpartition(fmt.think_start)[2].strip("\n")
            content = content.lstrip("\n")
    calls = tools_lib.calls(content, message.tool_calls)
    if not keep or thinking is None or (how == "last_turn" and not thinking):
        strings = turns(fmt)
        return [[own(strings.answer), Piece(content), *calls, own(strings.end)]]
    if how == "last_turn":  # Qwen3's template strips newlines alone
        trace = [own(fmt.after_think_start), Piece(thinking.strip("\n")), own(fmt.before_think_end)]
        content = content.lstrip("\n")
    else:  # thinking of no tokens is what the sampler writes for max_thinking_tokens=0
        trace = chat.trace_pieces(fmt, thinking) if thinking.strip() else [own(fmt.before_think_end)]
        content = content.strip()
    return [
        [],
        [own(fmt.think_start)],
        trace,
        [own(fmt.think_end)],
        [own(fmt.after_think_end), Piece(content), *calls],
        *([[own(fmt.earlier_end)]] if fmt.earlier_end else [[own(fmt.turn_end)], [own(fmt.after_turn)]]),
    ]


def system_opens_turn(fmt: ChatFormat) -> bool:
    """Whether a system prompt stands in the turn of the first question (Gemma 3)."""
    return not chat.system_turn(fmt)[1].endswith(turns(fmt).user)


def later_system(fmt: ChatFormat) -> str:
    """Returns the string before a system message that is not the first.

    Raises:
      UserError: if the format has no system turn, or it is not a turn like those of users.
    """
    strings = turns(fmt)
    start, end = chat.system_turn(fmt)
    if start.replace("system", "user", 1) != strings.user or end != strings.end + strings.user:
        raise UserError(
            "a system message stands after other messages, and the chat format has one place for it, at the start;"
            " give one system message, as the first."
        )
    return start
