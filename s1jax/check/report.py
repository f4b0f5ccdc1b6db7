"""The results of a check of a machine: lines of pass and fail with their figures, and the order they are made in.

A check is a function that returns an `Outcome`. A check that raises fails by itself; the others still run. Each part
has seconds of its own. No check of a part starts after them, and the table names those that did not start.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Status = Literal["pass", "fail", "not run"]
_LONGEST = 300  # characters of an error
_LEAST_SHARE = 0.1  # smallest relative difference between the long and the short run that counts as measured


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured number with its unit, for example 2.9 and `TB/s`."""

    value: float
    unit: str

    def __str__(self) -> str:
        if self.unit == "%":
            return f"{self.value:.1f} %" if self.value >= 1 else f"{self.value:.1g} %"
        return f"{self.value:.3g} {self.unit}".rstrip() if abs(self.value) < 1000 else f"{self.value:,.0f} {self.unit}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
      figures: by name, for example `error` or `decode`.
      passed: whether the figures are as they should be; True where they are only measured.
      note: a sentence, for example what the limit is.
    """

    figures: Mapping[str, Figure]
    passed: bool = True
    note: str = ""


class NotHereError(Exception):
    """This machine cannot run a check; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A check to run: its part, its name and the function that measures it."""

    part: str
    name: str
    run: Callable[[], Outcome]


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of the table. `note` is the reason where the status is `fail` or `not run`."""

    part: str
    name: str
    status: Status
    figures: Mapping[str, Figure]
    note: str
    seconds: float

    def record(self) -> dict[str, Any]:
        """The row as JSON values, every figure with its unit."""
        figures = {name: dataclasses.asdict(figure) for name, figure in self.figures.items()}
        return {**dataclasses.asdict(self), "figures": figures, "seconds": round(self.seconds, 2)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Line:
        """The row that `record` made."""
        figures = {name: Figure(**figure) for name, figure in record["figures"].items()}
        return cls(**{**record, "figures": figures})


def run_all(
    checks: Sequence[Check],
    seconds: Mapping[str, float],
    on_start: Callable[[Check], None] = lambda check: None,
    on_line: Callable[[Line], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Line]:
    """Runs checks in their order and returns their rows.

    Args:
      checks: those of a part follow each other.
      seconds: of each part; a part without an entry has no limit.
      on_start: called before each check.
      on_line: called with each row.
      clock: in seconds.
    """
    lines: list[Line] = []
    starts: dict[str, float] = {}
    for check in checks:
        begun = clock()
        limit = seconds.get(check.part, float("inf"))
        if begun - starts.setdefault(check.part, begun) >= limit:
            line = Line(check.part, check.name, "not run", {}, f"the {limit:.0f} s of this part were used up", 0.0)
        else:
            on_start(check)
            line = _run(check, clock)
        lines.append(line)
        on_line(line)
    return lines


def _run(check: Check, clock: Callable[[], float]) -> Line:
    begun = clock()
    status: Status
    try:
        outcome = check.run()
    except NotHereError as error:
        outcome, status, note = Outcome({}), "not run", str(error)
    except Exception as error:  # compilers and drivers raise what they like, and the other checks must still run
        text = " ".join(str(error).split())
        full = text.startswith("RESOURCE_EXHAUSTED")
        reason = "the memory of the device is not enough" if full else f"{type(error).__name__}: {text[:_LONGEST]}"
        outcome, status, note = Outcome({}), "not run" if full else "fail", reason
    else:
        status, note = "pass" if outcome.passed else "fail", outcome.note
    return Line(check.part, check.name, status, outcome.figures, note, clock() - begun)


def failed(lines: Sequence[Line]) -> list[Line]:
    """The rows that failed."""
    return [line for line in lines if line.status == "fail"]


def median_seconds(run: Callable[[], Any], times: int) -> float:
    """Median seconds of a function that returns when its work is done, after one call that compiles."""
    run()
    return sorted(_seconds(run) for _ in range(times))[times // 2]


def step_seconds(run: Callable[[int], Any], steps: int, times: int) -> float:
    """Seconds of one decode step: the least time of `run(steps)` less that of `run(2)`, so without the prefill.

    Raises:
      NotHereError: the difference is lost in the noise of this machine.
    """
    run(steps)  # first, because what is compiled for many steps does for few
    run(2)
    long, short = (min(_seconds(lambda n=n: run(n)) for _ in range(times)) for n in (steps, 2))  # type: ignore[misc]
    if long - short < _LEAST_SHARE * long:
        raise NotHereError(f"the times vary too much: {steps} steps took {long:.3g} s, 2 steps {short:.3g} s")
    return (long - short) / (steps - 2)


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
