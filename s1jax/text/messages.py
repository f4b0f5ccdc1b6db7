"""One message of a conversation: `Message`."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from s1jax.config.schema import shown
from s1jax.errors import UserError
from s1jax.text.tools import ToolCall

Role = Literal["system", "developer", "user", "assistant", "tool"]
SYSTEM_ROLES = ("system", "developer")  # two names of one thing: chat templates know the first


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation, without the chat template around it.

    Attributes:
      role: who wrote it: `system` or `developer`, which mean the same, `user`, `assistant`, or `tool`, the
        result of a tool that the assistant has called.
      content: text. Special tokens written in it stay text.
      thinking: reasoning of an assistant message before `content`; None if it has none.
      tool_calls: calls of an assistant message after `content`.

    Raises:
      UserError: for another role, a content that is not text, or thinking or calls in a message of another role.
    """

    role: Role
    content: str
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in typing.get_args(Role):
            raise UserError(f"a message has the role {shown(self.role)}; choose {', '.join(typing.get_args(Role))}.")
        for name, text in (("content", self.content), ("thinking", self.thinking)):
            if not isinstance(text, str) and not (name == "thinking" and text is None):
                raise UserError(f"a message has the {name} {shown(text)}; it must be a string.")
        if self.thinking is not None and self.role != "assistant":
            raise UserError(f"a message of the role {self.role} has thinking; only those of the assistant may.")
        calls = self.tool_calls
        if not isinstance(calls, (list, tuple)) or not all(isinstance(call, ToolCall) for call in calls):
            raise UserError(f"a message has the tool_calls {shown(calls)}; give a list of s1jax.text.tools.ToolCall.")
        object.__setattr__(self, "tool_calls", tuple(calls))
        if calls and self.role != "assistant":
            raise UserError(f"a message of the role {self.role} has tool_calls; only those of the assistant may.")
