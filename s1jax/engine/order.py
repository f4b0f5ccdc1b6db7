"""Orders in which waiting requests are admitted to batch slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from s1jax.engine.sequence import EncodedRequest, Resume

AGEING = 10.0  # seconds of waiting that are worth one step of priority
MOST_STEPS = 60  # of priority that count: whoever has waited ten minutes longer comes before all priorities


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A request in the scheduler.

    Attributes:
      id: that `submit` returned.
      request: what is to be sampled.
      longest: the most tokens that its sequence can have.
      stream: whether `Tokens` events are wanted.
      priority: lower is earlier, as in vLLM.
      arrival: seconds of a monotonic clock.
      salt: requests with another one share no pages of the prefix cache.
      resume: where its sequence goes on; None: it has not begun.
      end_thinking: its thinking is cut when its prompt is prefilled.
      cached_tokens: of its prompt, when it was first admitted; None before that.
    """

    id: int
    request: EncodedRequest
    longest: int
    stream: bool
    priority: int = 0
    arrival: float = 0.0
    salt: bytes = b""
    resume: Resume | None = None
    end_thinking: bool = False
    cached_tokens: int | None = None


Order = Callable[[Sequence[Submitted]], Iterable[Submitted]]


def first_come(waiting: Sequence[Submitted]) -> Iterable[Submitted]:
    """First come, first served within a priority; `AGEING` seconds of waiting make up for one step.

    Priorities beyond `MOST_STEPS` count as that, so that no request waits forever.
    """
    return sorted(waiting, key=urgency)


def urgency(each: Submitted) -> tuple[float, int]:
    """Sort key of `first_come`: the most urgent request has the smallest."""
    steps = max(-MOST_STEPS, min(each.priority, MOST_STEPS))
    return steps * AGEING + each.arrival, each.id


def longest_first(waiting: Sequence[Submitted]) -> Iterable[Submitted]:
    """Admission order of a batch: the longest first, so that at the end few slots wait for a long one.

    Requests with equal prompts follow each other, placed by the longest of them, so that they share one prefill.
    """
    most: dict[tuple[int, ...], int] = {}
    for each in waiting:
        most[each.request.prompt] = max(each.longest, most.get(each.request.prompt, 0))

    def key(each: Submitted) -> tuple[int, tuple[int, ...], int]:
        return most[each.request.prompt], each.request.prompt, each.longest

    return sorted(waiting, key=key, reverse=True)
