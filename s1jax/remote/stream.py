"""Puts the events of a streamed chat completion together into the body of one that was not streamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from s1jax.remote.reply import REASONING_FIELDS

_DONE = b"[DONE]"
_TEXTS = ("content", "refusal", *REASONING_FIELDS)  # fields of a delta that are appended to each other


class Assembly:
    """Takes the bytes of an event stream as they come."""

    def __init__(self) -> None:
        """Has no events yet."""
        self._rest = b""
        self._head: dict[str, Any] = {}
        self._parts: dict[str, list[Any]] = {}
        self._finish_reason = ""
        self._thinking: Any = None  # how it ended, of a server of s1jax
        self._usage: Any = None
        self._error: Any = None
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Takes more bytes.

        Raises:
          ValueError: an event is not JSON.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):  # a comment, with which servers keep the connection alive, or a blank
                continue
            text = line[5:].strip()
            if text == _DONE:
                self._ended = True
            elif text:
                self._event(json.loads(text))

    def body(self) -> dict[str, Any]:
        """Returns the body of the completion, or of the error that ended it.

        Raises:
          ValueError: the stream broke off.
        """
        if self._error is not None:
            return {"error": self._error}
        if not (self._ended or self._finish_reason):
            raise ValueError("the stream broke off")
        message = {name: _joined(parts) for name, parts in self._parts.items()}
        choice = {"message": {"content": "", **message}, "finish_reason": self._finish_reason}
        if self._thinking is not None:
            choice["thinking"] = self._thinking
        return {**self._head, "choices": [choice], "usage": self._usage}

    def _event(self, event: Any) -> None:
        if not isinstance(event, Mapping):
            raise ValueError("an event is not a JSON object")
        if event.get("error"):
            self._error = event["error"]
        for name in ("id", "model"):
            if event.get(name):
                self._head.setdefault(name, event[name])
        if event.get("usage"):  # in the last event, or in each of them as the count so far
            self._usage = event["usage"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping):
            return
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if isinstance(choice.get("thinking"), Mapping):
            self._thinking = choice["thinking"]
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            return
        for name in _TEXTS:
            if delta.get(name):
                self._parts.setdefault(name, []).append(delta[name])


def _joined(parts: list[Any]) -> Any:
    """Returns the text of texts, or one list of what is not a text."""
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    found: list[Any] = []
    for part in parts:
        found += part if isinstance(part, list) else [{"type": "text", "text": part} if isinstance(part, str) else part]
    return found
