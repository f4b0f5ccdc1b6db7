"""Finds stop strings, which may span several tokens, in an answer."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Finder:
    """Finds the stop string that is complete first.

    It is looked for in the text that was sampled for the answer, from its first character that is not white space on:
    an answer that begins with a blank line is not ended by the stop string of a blank line. What is found does not
    depend on how many ids are there beyond it. A U+FFFD counts once something else follows it: until then it may be the
    beginning of a character of several ids.

    Attributes:
      decode: ids -> text.
      stops: texts, none of them empty.
    """

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...]

    def __call__(self, ids: Sequence[int], num_forced: int) -> tuple[int, str] | None:
        """Returns the number of tokens up to the one that completes the stop string, and the stop string.

        Args:
          ids: tokens of the answer so far, without a stop token at its end.
          num_forced: number of tokens at their beginning that were not sampled.
        """
        if self._match(ids, num_forced) is None:
            return None
        begin = num_forced + 1
        count = begin + bisect.bisect_left(
            range(begin, len(ids)), True, key=lambda n: self._match(ids[:n], num_forced) is not None
        )
        match = self._match(ids[:count], num_forced)
        assert match is not None
        return count, match[1]

    def before(self, ids: Sequence[int], num_forced: int) -> str:
        """Returns the text of the answer's tokens up to the stop string; all of it if there is none."""
        match = self._match(ids, num_forced)
        text = self.decode(ids)
        return text if match is None else text[: match[0]]

    def held_back(self, text: str) -> int:
        """Returns how many characters at the end of `text` may be the beginning of a stop string."""
        most = min(max(map(len, self.stops), default=1) - 1, len(text))
        return next((n for n in range(most, 0, -1) if any(s.startswith(text[-n:]) for s in self.stops)), 0)

    def _match(self, ids: Sequence[int], num_forced: int) -> tuple[int, str] | None:
        """Where the stop string begins in the text of `ids`, and the string; of several that are complete first."""
        # The last id may be the beginning of a character, which reads U+FFFD until the rest of it is there.
        text, skip = self.decode(ids).rstrip("\ufffd"), len(self.decode(ids[:num_forced])) if num_forced else 0
        start = len(text) - len(text[skip:].lstrip())
        found = ((text.find(stop, start), stop) for stop in self.stops)
        ends = [(place + len(stop), place, stop) for place, stop in found if place >= 0]
        return min(ends)[1:] if ends else None
