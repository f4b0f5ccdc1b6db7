"""What a run and its caller say to each other: progress, a wish to stop, why it ended."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Literal

# endpoint: it answers nobody, or not as it should. budget: max_dollars. user: asked to stop.
Reason = Literal["endpoint", "budget", "user"]


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why a run ended before all requests were answered.

    Attributes:
      reason: see `Reason`.
      sentence: for a person, without the remedy that all have: to run the same command again.
    """

    reason: Reason
    sentence: str


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
      done: requests that have a state, earlier runs included.
      total: requests of the command.
      in_flight: requests that wait for an answer.
      tokens: of the answers of this run, thinking included.
      seconds: of this run.
      dollars: that the folder has cost, all runs and what was lost included.
    """

    done: int
    total: int
    in_flight: int
    tokens: int
    seconds: float
    dollars: float


class Control:
    """Stops a run from another thread or a signal handler."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread
        self._stop: tuple[float, str] | None = None
        self._listener: Callable[[float, str], object] | None = None

    def stop(self, grace: float = math.inf, sentence: str = "the run was asked to stop") -> None:
        """Sends nothing more; what is in flight may take `grace` seconds, then it counts as possible spend."""
        with self._lock:
            self._stop = (grace, sentence)
            listener = self._listener
        if listener is not None:
            listener(grace, sentence)

    def listen(self, listener: Callable[[float, str], object] | None) -> None:
        """Sets who is asked to stop; at once, if that was asked before."""
        with self._lock:
            self._listener, asked = listener, self._stop
        if listener is not None and asked is not None:
            listener(*asked)
