"""A streamed sample: its new text and new tokens, piece by piece."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from s1jax.engine.request import Output
from s1jax.engine.sequence import EncodedRequest, Sample
from s1jax.engine.stops import Finder
from s1jax.text.delimiters import Delimiters


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is new in a sequence since the piece before.

    The ids of all pieces are those of the output, `text` of all pieces of one part is that part of the output, to the
    character. Text is late by a few ids where they may still change or drop it: half a character, white space at the
    end of a part, what may become a stop string.

    Attributes:
      part: `thinking`, or `answer` from the closing sequence on.
      text: new text; empty for delimiters. Never ends inside a character.
      ids: new ids, delimiters included.
      forced: whether they were forced: delimiters, waits, "Final Answer:".
      output: of the last piece, which has neither text nor ids: the output, as of `Engine.generate`.
    """

    part: Literal["thinking", "answer"]
    text: str
    ids: tuple[int, ...]
    forced: bool
    output: Output | None = None


class Pieces:
    """Cuts a growing sample into pieces."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        texts: Callable[[Sample], tuple[str, str]],
        request: EncodedRequest,
        delimiters: Delimiters,
    ):
        """Takes what separates delimiters from text.

        Args:
          decode: ids -> text.
          texts: the texts of thinking and of the answer of a sample, see `s1jax.engine.encoding.Encoder.texts`.
          request: of the sample.
          delimiters: of the engine.
        """
        self._texts, self._request, self._delimiters = texts, request, delimiters
        self._count = 0
        self._thought: str | None = None
        finder = Finder(decode, request.params.stop)
        self._thinking, self._answer = _Text(decode, lambda text: 0), _Text(decode, finder.held_back)

    def new(self, sample: Sample) -> list[Piece]:
        """Returns the pieces that `sample`, which goes on where the one before it ended, has more than that."""
        start = len(self._delimiters.think_start)
        thought = start + sample.thinking_tokens
        answer = self._answer_begin(sample, thought)
        last = len(sample.ids) - (sample.answer_end == "stop" and sample.stop_reason is None)
        thinking_end, answer_end = self._whole(sample)

        def kind(place: int) -> tuple[bool, bool, bool]:
            """Whether an id belongs to the answer's part, is text, was forced."""
            text = start <= place < thought or answer <= place < last
            return place >= thought and place >= start, text, bool(sample.forced[place])

        found: list[Piece] = []
        for (later, text, forced), places in itertools.groupby(range(self._count, len(sample.ids)), kind):
            ids = tuple(int(sample.ids[place]) for place in places)
            if later:
                found += self._rest("thinking", self._thinking, thinking_end)
            part, growing, end = (
                ("answer", self._answer, answer_end) if later else ("thinking", self._thinking, thinking_end)
            )
            found.append(Piece(part, growing.add(ids, end) if text else "", ids, forced))  # type: ignore[arg-type]
        self._count = len(sample.ids)
        return found + (self._rest("answer", self._answer, answer_end) if sample.answer_end else [])

    def _whole(self, sample: Sample) -> tuple[str | None, str | None]:
        """The text of each part that is complete; decoded when it is, because that takes time for a long part."""
        if (sample.thinking_end and self._thought is None) or sample.answer_end:
            thought, answered = self._texts(sample)
            self._thought = thought
            return thought, answered if sample.answer_end else None
        return self._thought if sample.thinking_end else None, None

    def _rest(self, part: Literal["thinking", "answer"], growing: _Text, end: str | None) -> list[Piece]:
        rest = growing.finish(end or "")
        return [Piece(part, rest, (), False)] if rest else []

    def _answer_begin(self, sample: Sample, thought: int) -> int:
        """The index of the first token of the answer's text, after the delimiters, which may still be incomplete."""
        if not sample.thinking_end:
            return len(sample.ids)
        before = [*self._request.prompt, *sample.ids[:thought].tolist()]
        newline = sample.was_cut and before[-1] not in self._delimiters.ends_in_newline
        return thought + len(self._delimiters.think_end) + (len(self._delimiters.newline) if newline else 0)


class _Text:
    """The text of one part, without white space at its ends."""

    def __init__(self, decode: Callable[[Sequence[int]], str], held_back: Callable[[str], int]):
        self._decode, self._held_back = decode, held_back
        self._ids: list[int] = []
        # Only the ids since the last but one time are decoded again, as vLLM does: what an id says can depend on the
        # one before it, not on earlier ones.
        self._first = self._read = 0
        self._pending = ""
        self._shown = 0  # characters

    def add(self, ids: Sequence[int], end: str | None) -> str:
        """Adds ids and returns what is new and sure; `end` is the whole text, where that is known."""
        self._ids += ids
        text = self._decode(self._ids[self._first :])
        if not text.endswith("\ufffd"):
            self._pending += text[len(self._decode(self._ids[self._first : self._read])) :]
            self._first, self._read = self._read, len(self._ids)
        if not self._shown:
            self._pending = self._pending.lstrip()
        held = self._held_back(self._pending)
        sure = self._pending[: len(self._pending) - held].rstrip()
        self._pending = self._pending[len(sure) :]
        if end is not None:  # a stop string may have cut it
            sure = end[self._shown : self._shown + len(sure)]
        self._shown += len(sure)
        return sure

    def finish(self, end: str) -> str:
        """Returns what the whole text `end` has more than was returned so far."""
        rest = end[self._shown :]
        self._shown = len(end)
        return rest
