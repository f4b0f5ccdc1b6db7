"""A sequence in a batch slot, as the host sees it: its pages, how far it is prefilled, the tokens it has emitted."""

from __future__ import annotations

import numpy as np

from s1jax.engine import budget as budget_lib
from s1jax.engine.order import Submitted
from s1jax.engine.sequence import Resume, Sample
from s1jax.text.delimiters import Delimiters


def prefix_of(submitted: Submitted, start: tuple[int, ...]) -> tuple[int, ...]:
    """Returns prompt, think_start and the tokens that were emitted before; `start` is think_start."""
    resume = submitted.resume
    return (*submitted.request.prompt, *start, *(resume.ids.tolist() if resume else ()))


class Occupant:
    """A sequence in a batch slot.

    Attributes:
      submitted: its request.
      prefix: see `prefix_of`.
      pages: of the KV cache; they hold the first `num_cached` tokens.
      num_cached: tokens in the cache.
      piece: size of the pieces in which the rest of `prefix` is prefilled.
      state: of budget forcing, scalars; None until the sequence is prefilled.
      stopped: thinking was ended by the caller.
    """

    def __init__(self, submitted: Submitted, pages: list[int], num_cached: int, piece: int, start: tuple[int, ...]):
        """Takes a sequence whose first `num_cached` tokens are in the cache; `start` is think_start."""
        resume = submitted.resume
        self.submitted, self.pages, self.num_cached, self.piece = submitted, pages, num_cached, piece
        self.prefix = prefix_of(submitted, start)
        self.state: budget_lib.State | None = None
        self.stopped = resume is not None and resume.stopped
        self._start = len(start)
        size = submitted.longest - len(submitted.request.prompt)
        self._ids = np.zeros(size, np.int32)
        self._forced = np.zeros(size, bool)
        self._logprobs = np.zeros(size, np.float32)
        self._ids[: self._start], self._forced[: self._start] = start, True
        self._count = self._start
        if resume is not None:
            self._extend(resume.ids, resume.forced, resume.logprobs)

    @property
    def to_prefill(self) -> int:
        """Number of tokens of the prefix that are to be prefilled: all but its last, which decoding feeds."""
        return len(self.prefix) - 1 - self.num_cached

    @property
    def is_decoding(self) -> bool:
        """Whether the sequence is prefilled."""
        return self.state is not None

    def _extend(self, ids: np.ndarray, forced: np.ndarray, logprobs: np.ndarray) -> None:
        end = self._count + len(ids)
        self._ids[self._count : end] = ids
        self._forced[self._count : end] = forced
        self._logprobs[self._count : end] = logprobs
        self._count = end

    def advance(self, state: budget_lib.State, ids: np.ndarray, forced: np.ndarray, logprobs: np.ndarray) -> None:
        """Takes a slot's part of a report: the state, and arrays [K] that begin with what was emitted."""
        new = int(state.count) - self._count
        self._extend(ids[:new], forced[:new], logprobs[:new])
        self.state = state
        self.num_cached += new

    def tokens(self) -> tuple[int, ...]:
        """All tokens that are in the cache."""
        emitted = self._ids[: self._count].tolist()
        return (*self.submitted.request.prompt, *emitted)[: self.num_cached]

    def resume(self) -> Resume | None:
        """Where the sequence goes on, after it has left its slot."""
        if self.state is None or self._count == self._start:  # nothing was emitted in this slot
            return self.submitted.resume
        places = slice(self._start, self._count)
        return Resume(
            self._ids[places].copy(),
            self._forced[places].copy(),
            self._logprobs[places].copy(),
            self.state,
            self.stopped,
        )

    def sample(self, delimiters: Delimiters) -> Sample:
        """What was sampled so far; the sequence is decoding."""
        state = self.state
        assert state is not None
        is_thinking, is_finished = state.phase == budget_lib.THINKING, state.phase == budget_lib.FINISHED
        cut = "stopped" if self.stopped else "cut"
        logprobs = self._logprobs[: self._count]
        return Sample(
            ids=self._ids[: self._count],
            forced=self._forced[: self._count],
            thinking_tokens=int(state.thinking),
            answer_tokens=int(state.answer),
            waits=int(state.waits),
            thinking_end="" if is_thinking else cut if state.cut else "natural",
            answer_end="" if not is_finished else "stop" if state.stopped else "length",
            logprob=float(logprobs.sum(dtype=np.float64)),
            logprobs=logprobs,
            cached_tokens=self.submitted.cached_tokens or 0,
            waits_left=int(state.waits_left),
        )
