"""What a hand-off sends to another machine: the messages, and the patterns that keep them here."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from s1jax.text.messages import Message

# Long numbers and credentials are kept back, not edited: half a question gets a wrong answer.
PATTERNS = {
    "mail": r"[^\s@<>()]+@[^\s@<>()]+\.[^\s@<>()]{2,}",
    "keys": (
        r"-----BEGIN [A-Z ]*PRIVATE KEY|\b(?:sk|pk|rk)[-_][\w-]{16,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"
        r"|\bhf_\w{20,}|\bxox[abprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}"
        r"|\beyJ[\w-]{10,}\.[\w-]{10,}|\b(?:password|passwd|api[ _-]?key|secret|token)\s*[:=]\s*\S{6,}"
    ),
    "digits": (
        r"\d{9,}"  # accounts, telephones
        r"|(?:\d{4}[ .-]){2,}\d{1,4}\b"  # cards
        r"|\+\d[\d ()./-]{6,}\d|\b\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"  # telephones
        r"|\b\d{3}-\d{2}-\d{4}\b"  # social security
        r"|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,}"  # IBAN
    ),
}
_COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PATTERNS.items()}


@dataclasses.dataclass(frozen=True)
class Send:
    """What leaves beside the last question.

    Attributes:
      system: the system prompt.
      history: earlier turns, without their thinking.
      thinking: the local model's thinking about the question, as an assistant's words after it.
    """

    system: bool = False
    history: bool = False
    thinking: bool = False

    def names(self) -> list[str]:
        """What leaves, in words."""
        more = [name for name in ("system", "history", "thinking") if getattr(self, name)]
        return ["last question", *more]


def messages(prompt: Sequence[Message], thinking: str, send: Send) -> list[dict[str, str]]:
    """Returns the messages to send; none where the last turn is not the user's.

    Args:
      prompt: the conversation.
      thinking: of the local model, about the last question.
      send: what leaves.
    """
    if not prompt or prompt[-1].role != "user":
        return []
    systems = [message for message in prompt if message.role == "system"]
    earlier = [message for message in prompt[:-1] if message.role != "system"]
    chosen = [*(systems if send.system else []), *(earlier if send.history else []), prompt[-1]]
    found = [{"role": message.role, "content": message.content} for message in chosen]
    if send.thinking and thinking:
        found[-1]["content"] += f"\n\nNotes of another model, which may be wrong:\n{thinking}"
    return found


def blocked_by(texts: Sequence[str], names: Sequence[str], patterns: Sequence[re.Pattern[str]] = ()) -> str:
    """Returns the name of the first pattern that a text contains; empty where none does.

    Characters that only look different (full width, zero width) are compared in their plain form.

    Args:
      texts: what would leave.
      names: those of `PATTERNS` to look for.
      patterns: the operator's own, called `own 1`, `own 2`, ...
    """
    wanted = {name: _COMPILED[name] for name in names}
    wanted |= {f"own {i}": pattern for i, pattern in enumerate(patterns, 1)}
    for text in texts:
        folded = unicodedata.normalize("NFKC", text)
        folded = "".join(c for c in folded if unicodedata.category(c) != "Cf")
        for name, pattern in wanted.items():
            if pattern.search(folded):
                return name
    return ""
