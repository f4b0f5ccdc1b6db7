"""When the next request may be sent: requests in flight, requests and tokens per minute, pauses, a window that adapts.

After a 429 the endpoint gets no requests for the time that it names (else 1 s, doubled up to a minute each time), and
the requests in flight at one time are halved. Answers let them grow again, up to `max_in_flight` (AIMD).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable

_MINUTE = 60.0
_FIRST, _LONGEST = 1.0, 60.0  # seconds of a pause that the endpoint did not name
_GROWTH = 0.05  # of max_in_flight, for a window full of answers


@dataclasses.dataclass(slots=True)
class Hold:
    """A request in flight.

    Attributes:
      sent_at: by the clock of the limits.
      tokens: that it takes of a minute's.
      counts: whether they are still in the last minute's.
    """

    sent_at: float
    tokens: int
    counts: bool = False


class Limits:
    """Counts requests in flight, and those of the last minute.

    Attributes:
      in_flight: requests.
      most: of them at one time, whatever the window is; the caller may change it.
    """

    def __init__(
        self, max_in_flight: int, requests_per_minute: float, tokens_per_minute: float, clock: Callable[[], float]
    ):
        """Args are those of `DistilSettings`; 0 per minute: no limit. `clock` returns seconds."""
        self.in_flight, self.most = 0, max_in_flight
        self._full, self._window = max_in_flight, float(max_in_flight)
        self._interval = _MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._tokens_per_minute = tokens_per_minute or math.inf
        self._clock = clock
        self._minute: collections.deque[Hold] = collections.deque()
        self._minute_tokens = 0
        self._next_at = self._slowed_at = -math.inf
        self._pause = _FIRST
        self.resume_at = -math.inf  # by the clock; nothing is sent before

    def delay(self, tokens: int) -> float:
        """Returns the seconds until a request may be sent; infinity: not before another one has ended.

        Args:
          tokens: most that it may use, prompt included.
        """
        if self.in_flight >= min(int(self._window), self.most):
            return math.inf
        now = self._clock()
        wait = max(self.resume_at - now, self._next_at - now, 0.0)
        if self._tokens_per_minute < math.inf:
            wait = max(wait, self._until_free(tokens, now))
        return wait

    def start(self, tokens: int) -> Hold:
        """Counts a request that is sent now."""
        now = self._clock()
        self.in_flight += 1
        # A timer that woke late is made up for by at most one request.
        self._next_at = max(self._next_at, now - self._interval) + self._interval
        hold = Hold(now, tokens)
        if self._tokens_per_minute < math.inf:
            hold.counts = True
            self._minute.append(hold)
            self._minute_tokens += tokens
        return hold

    def end(self, hold: Hold, tokens: int) -> None:
        """Counts the end of a request, which gives back the tokens that it did not use."""
        self.in_flight -= 1
        if hold.counts:
            self._minute_tokens += tokens - hold.tokens
            hold.tokens = tokens

    def answered(self) -> None:
        """Lets the window grow after an answer."""
        self._pause = _FIRST
        step = max(1.0, _GROWTH * self._full) / max(self._window, 1.0)
        self._window = min(self._window + step, float(self._full))

    def slow_down(self, hold: Hold, retry_after: float | None) -> float:
        """Pauses all requests after a 429 or the like; returns the seconds of the pause.

        Args:
          hold: the request that got it. Of the requests that were in flight together only the first halves the window.
          retry_after: seconds that the endpoint wants; None: it names none.
        """
        now = self._clock()
        first = hold.sent_at > self._slowed_at
        pause = retry_after
        if pause is None:
            pause = self._pause
            if first:
                self._pause = min(2 * self._pause, _LONGEST)
        if first:
            self._slowed_at = now
            self._window = max(1.0, self._window / 2)
        self.resume_at = max(self.resume_at, now + pause)
        return pause

    def _until_free(self, tokens: int, now: float) -> float:
        while self._minute and self._minute[0].sent_at <= now - _MINUTE:
            old = self._minute.popleft()
            old.counts = False
            self._minute_tokens -= old.tokens
        over = self._minute_tokens + tokens - self._tokens_per_minute
        for hold in self._minute:
            if over <= 0:
                break
            over -= hold.tokens
            if over <= 0:
                return hold.sent_at + _MINUTE - now
        return 0.0
