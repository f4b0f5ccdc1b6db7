"""Drops rows whose trace or answer is cut, empty or damaged."""

from __future__ import annotations

import dataclasses
import re

from s1jax.curation.row import Drop, Row

# How programs say that an answer ended because it had reached a limit: OpenAI, Anthropic, Gemini, open-r1's column.
CUT = ("length", "max_tokens", "max_output_tokens", "incomplete", "cut")
REFUSED = ("content_filter", "refusal", "safety", "refused")
_TAGS = re.compile(r"</?think>|<\|(?:begin|end)_of_(?:thought|solution)\|>|<\|im_(?:start|end)\|>|<\|endoftext\|>")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")


@dataclasses.dataclass(frozen=True)
class Quality:
    """The rule: a pure function of a row.

    A row of a question alone, with neither trace nor answer, has nothing to look at and is kept.

    Attributes:
      cut: rows whose `finish_reason` says that the text reached a limit are dropped. The longest traces are the cut
        ones, so a choice of long traces prefers them.
      refused: rows whose `finish_reason` says that the teacher or a filter refused are dropped.
      empty: rows without a trace, or without an answer after it, are dropped.
      damaged: rows with tags of a chat template in trace or answer (a model would learn to open them again), with
        control characters or signs of a wrong encoding, or with a box that is not closed, are dropped.
    """

    cut: bool = True
    refused: bool = True
    empty: bool = True
    damaged: bool = True

    name = "quality"

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; the evidence is the value or the text around the place."""
        trace, answer = row.trace.strip(), row.answer.strip()
        if not trace and not answer:
            return None
        ended = str(row.columns.get("finish_reason") or "")
        if self.cut and ended.lower() in CUT:
            return Drop(self.name, "reached the limit of tokens", f"finish_reason {ended}")
        if self.refused and ended.lower() in REFUSED:
            return Drop(self.name, "was refused", f"finish_reason {ended}")
        if self.empty and not (trace and answer):
            return Drop(self.name, f"has no {'answer' if trace else 'trace'}", f"the {'trace' if trace else 'answer'}:"
                        f" {_around(trace or answer, 0)}")  # fmt: skip
        return self._damage(trace, answer) if self.damaged else None

    def _damage(self, trace: str, answer: str) -> Drop | None:
        for part, text in (("trace", trace), ("answer", answer)):
            for reason, pattern in (("tags of a chat template", _TAGS), ("damaged characters", _CONTROL)):
                if found := pattern.search(text):
                    return Drop(self.name, f"{reason} in the {part}", _around(text, found.start()))
        for box in _BOX.finditer(answer):
            if not _is_closed(answer, box.end()):
                return Drop(self.name, "a box that is not closed in the answer", _around(answer, box.start()))
        return None


def _is_closed(text: str, start: int) -> bool:
    """Whether the brace that was opened before `start` is closed; escaped braces do not count."""
    depth = 1
    for brace in re.finditer(r"(?<!\\)[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return True
    return False


def _around(text: str, place: int) -> str:
    """Returns what stands around a place, in one line; control characters as their escapes."""
    words = " ".join(text[max(0, place - 20) : place + 40].split())
    return _CONTROL.sub(lambda sign: repr(sign[0])[1:-1], words)
