"""A request in the engine thread, as the event loop sees it: `Ticket`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from s1jax.engine.pieces import Piece, Pieces
from s1jax.engine.request import Output
from s1jax.engine.sequence import EncodedRequest, Sample

if TYPE_CHECKING:
    from s1jax.engine.encoding import Encoder


class Unavailable(Exception):
    """The server cannot answer now: HTTP 503.

    Attributes:
      reason: `loading`, `queue_full`, `draining`, `shutdown` or `failed`; the label of a metric.
      retry_after: seconds after which it is worth a try; 0: never.
    """

    def __init__(self, message: str, reason: str, retry_after: int = 0):
        """Takes one sentence for the client."""
        super().__init__(message)
        self.reason, self.retry_after = reason, retry_after


@dataclasses.dataclass
class Times:
    """When things happened to a sequence, in seconds of `time.monotonic`; None: not yet.

    Attributes:
      submitted: the request arrived.
      admitted: the scheduler began the step that gave it a batch slot.
      first_token: its first token after think_start was seen, of thinking or of the answer.
      first_answer_token: the first token after its thinking was seen.
      last: its newest token was seen.
      finished: it ended.
    """

    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    first_answer_token: float | None = None
    last: float | None = None
    finished: float | None = None


class Running:
    """One of the sequences of a ticket.

    Attributes:
      request: what is sampled.
      times: see `Times`.
      sample: the newest; None before the first. It has everything so far, so a newer one replaces it: text that a slow
        reader has not taken yet is merged.
      output: of a finished sequence.
      device_seconds: its share of the time of the steps that it was in.
    """

    def __init__(self, request: EncodedRequest, encoder: Encoder, index: int, count: int, submitted: float):
        """Takes the request, and which one of how many it is."""
        self.request, self.times = request, Times(submitted)
        self.sample: Sample | None = None
        self.output: Output | None = None
        self.device_seconds = 0.0
        self._encoder, self._index, self._count = encoder, index, count
        self._pieces = Pieces(
            encoder.decode, lambda sample: encoder.texts(sample, request.params), request, encoder.delimiters
        )
        self._taken: Sample | None = None

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens before the first sampled one."""
        return len(self.request.prompt) + len(self._encoder.delimiters.think_start)

    def update(self, sample: Sample, began: float, now: float, finished: bool) -> int:
        """Takes a newer sample of the step that began at `began`; returns how many tokens are new."""
        start = len(self._encoder.delimiters.think_start)
        before = len(self.sample.ids) if self.sample is not None else start
        new, self.sample = max(len(sample.ids) - before, 0), sample
        times = self.times
        if times.admitted is None:
            times.admitted = began
        if new and times.first_token is None:
            times.first_token = now
        if sample.answer_tokens and times.first_answer_token is None:
            times.first_answer_token = now
        if new:
            times.last = now
        if finished:
            times.finished = now
            self.output = self._encoder.output(self.request, sample, sample_index=self._index, num_samples=self._count)
        return new

    def take(self) -> list[Piece]:
        """Returns the pieces since the last call; the last one of a sequence has the output."""
        if self.sample is None or self.sample is self._taken:
            return []
        self._taken = self.sample
        found = self._pieces.new(self.sample)
        return found if self.output is None else [*found, Piece("answer", "", (), False, self.output)]


class Ticket:
    """A request in the engine thread: a stream of pieces, which can be cancelled.

        async for batch in ticket:
            for index, piece in batch:
                ...

    All methods belong to the event loop. `s1jax.serve.worker.Worker.submit` makes tickets.

    Attributes:
      sequences: one for each sample: those of the first prompt, then those of the second, ...
    """

    def __init__(
        self,
        encoder: Encoder,
        encoded: Sequence[EncodedRequest],
        now: float,
        *,
        samples: int,
        streams: bool,
        cancel: Callable[[Ticket], None],
    ):
        """Takes the requests, `samples` of each prompt, and what cancels them in the engine thread."""
        self.sequences = [Running(each, encoder, i % samples, samples, now) for i, each in enumerate(encoded)]
        self.streams = streams
        self._cancel = cancel
        self._changed = asyncio.Event()
        self._error: Unavailable | None = None
        self.cancelled = False

    @property
    def is_finished(self) -> bool:
        """Whether all sequences have their output, or never will."""
        return self.cancelled or self._error is not None or all(each.output for each in self.sequences)

    def cancel(self) -> None:
        """Drops the request: its slots and pages are free after the step that runs. Does nothing to a finished one."""
        if not self.is_finished:
            self.cancelled = True
            self._cancel(self)
            self._changed.set()

    def fail(self, error: Unavailable) -> None:
        """Ends the request: whoever waits for it gets `error`."""
        if not self.is_finished:
            self._error = error
            self._changed.set()

    def changed(self) -> None:
        """Wakes whoever waits for the request."""
        self._changed.set()

    async def next(self) -> list[tuple[int, Piece]]:
        """Waits for news and returns all of it, with the index of the sequence; an empty list at the end.

        Raises:
          Unavailable: the server shuts down or has failed.
        """
        while True:
            self._changed.clear()
            found = [(i, piece) for i, each in enumerate(self.sequences) for piece in each.take()]
            if found:
                return found
            if self._error is not None:
                raise self._error
            if self.is_finished:
                return []
            await self._changed.wait()

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Yields what `next` returns; its errors are those of `next`."""
        while found := await self.next():
            yield found

    async def outputs(self) -> list[Output]:
        """Waits for the end and returns the outputs; for a ticket whose pieces nobody takes.

        Raises:
          Unavailable: the server shuts down or has failed, or the request was cancelled.
        """
        while not self.is_finished:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        outputs = [each.output for each in self.sequences if each.output is not None]
        if len(outputs) < len(self.sequences):
            raise Unavailable("the request was cancelled.", "cancelled")
        return outputs
