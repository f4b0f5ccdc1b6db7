"""Drops traces that repeat themselves.

A model that does not find an end writes the same sentences again until it reaches its limit. Two measures find such
passages, and both only count what is literally the same, because a search through cases is allowed to look alike:
sentences and lines that have been there several times before; and windows of the text that zlib compresses to almost
nothing, for loops without a sentence's end.
"""

from __future__ import annotations

import collections
import dataclasses
import zlib

from s1jax.curation.row import Drop, Row

_ENDS = (". ", "? ", "! ", "。", "！", "？")  # of sentences, beside the ends of lines
_LEAST = 16  # characters of a sentence that counts: "Wait." and "So:" may be frequent
_TIMES = 3  # so often a sentence may stand; further copies are repetition
_WINDOW = 2048  # bytes
_NEEDLE = 24  # bytes
_LEVEL = 1  # of zlib; higher ones find no more in a loop and take longer


@dataclasses.dataclass(frozen=True)
class Repetition:
    """The rule: a pure function of a row. Rows without a trace are kept.

    Attributes:
      share: part of the trace that may be repetition, 0 to 1.
      ratio: a window is a loop if its compressed size is a smaller part of its size than this. Windows of GSM8K, of
        OlympiadBench's and AIME's solutions and of a model's answers to MATH are at 0.25 to 0.80.
    """

    share: float = 0.2
    ratio: float = 0.1

    name = "repetition"

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; the evidence is a part of what is repeated, with the share."""
        share, example = max(repeated_sentences(row.trace), loops(row.trace, self.ratio))
        if share <= self.share:
            return None
        return Drop(self.name, "the trace repeats itself", f"{share:.0%} of it, such as: {' '.join(example.split())}")


def repeated_sentences(text: str) -> tuple[float, str]:
    """Returns the part of a text (0 to 1) that is copies of sentences and lines, beyond the third, and the longest.

    Sentences of fewer than 16 characters are not counted.
    """
    lines = text
    for end in _ENDS if not text.isascii() else _ENDS[:3]:
        lines = lines.replace(end, f"{end[0]}\n")  # five times as fast as a regular expression
    sentences = [sentence for sentence in lines.split("\n") if len(sentence) >= _LEAST]
    if len(sentences) - len(set(sentences)) < _TIMES:
        return 0.0, ""
    seen = collections.Counter(sentences)
    copies = {sentence: (count - _TIMES) * len(sentence) for sentence, count in seen.items() if count > _TIMES}
    if not copies:
        return 0.0, ""
    return sum(copies.values()) / len(text), max(copies, key=lambda sentence: (copies[sentence], sentence))[:80]


def loops(text: str, ratio: float) -> tuple[float, str]:
    """Returns the part of a text (0 to 1) that is windows of loops, and the beginning of the first such window.

    The last window ends with the text, because a loop that reached a limit is there. What is left over at the beginning
    is a window if it is half as long.
    """
    data = text.encode("utf-8", "surrogatepass")
    rest = len(data) % _WINDOW
    windows = [data[:rest]] if rest >= _WINDOW // 2 else []
    windows += [data[i : i + _WINDOW] for i in range(rest, len(data), _WINDOW)]
    found = [window for window in windows if _may_loop(window) and _compressed(window) < ratio * len(window)]
    if not found:
        return 0.0, ""
    return sum(map(len, found)) / len(data), found[0][:80].decode("utf-8", "ignore")


def _may_loop(window: bytes) -> bool:
    """Whether the beginning or the end of a window is there once more, as in a loop."""
    return window.find(window[:_NEEDLE], 1) > 0 or window.rfind(window[-_NEEDLE:], 0, -1) >= 0


def _compressed(window: bytes) -> int:
    return len(zlib.compress(window, _LEVEL))
