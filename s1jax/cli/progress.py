"""Shows progress on the terminal: the current activity, the share that is done, the time left."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from s1jax.cli import terminal

_LINE_EVERY = 30.0  # seconds between lines if the output is not a terminal


class _Left(ProgressColumn):
    """Time left by the mean of all units.

    rich's own column only knows the last 30 s: it shows nothing if a unit takes longer.
    """

    def __init__(self, left: Callable[[], float | None]):
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        left = self._left()
        text = "-:--:--" if left is None else str(datetime.timedelta(seconds=round(left)))
        return Text(text, style="progress.remaining")


class Bar:
    """A progress bar on stderr; occasional plain lines if stderr is not a terminal; nothing if not `shown`."""

    def __init__(self, what: str, total: int, *, shown: bool = True):
        """Draws nothing before `with`.

        Args:
          what: the activity.
          total: number of units.
          shown: False on all processes but the first.
        """
        self._what, self._total, self._done, self._detail = terminal.safe(what), total, 0, ""
        self._first: int | None = None  # units done at the first update
        self._lines = shown and not sys.stderr.isatty()
        self._begun = self._updated = self._written = 0.0
        self._bar: Progress | None = None
        if shown and not self._lines:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                _Left(self.time_left),
                TextColumn("{task.fields[detail]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self._what, total=total, detail="")

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        elif self._lines:
            self._line()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._lines and kind is None:
            self._line()

    def phase(self, what: str) -> None:
        """Sets the activity."""
        self._what = terminal.safe(what)
        if self._bar is not None:
            self._bar.update(self._task, description=self._what)
        elif self._lines:
            self._line()

    def resume(self, done: int) -> None:
        """Sets how many units an earlier process did; they do not count for the time left."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def update(self, done: int, detail: str = "") -> None:
        """Sets how many units are done, with a few words or figures about the newest one."""
        self._updated = time.monotonic()
        if self._first is None:  # units before a resumption do not count for the time left
            self._first, self._begun = done, self._updated
        self._done, self._detail = done, terminal.safe(detail)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, detail=self._detail)
        elif self._lines and time.monotonic() - self._written > _LINE_EVERY:
            self._line()

    def say(self, sentence: str) -> None:
        """Prints a line above the bar; from any thread."""
        if self._bar is not None:
            self._bar.console.print(terminal.safe(sentence), markup=False, highlight=False)
        elif self._lines:
            print(terminal.safe(sentence), file=sys.stderr, flush=True)

    def time_left(self) -> float | None:
        """Seconds, by the mean of the units since the first update; None before the second one."""
        if self._first is None:
            return None
        new = self._done - self._first
        if new <= 0:
            return None
        pace = (self._updated - self._begun) / new
        return max(0.0, pace * (self._total - self._done) - (time.monotonic() - self._updated))

    def _line(self) -> None:
        self._written = time.monotonic()
        left = self.time_left()
        time_left = "" if left is None or self._done >= self._total else f", {left:.0f} s left"
        detail = f", {self._detail}" if self._detail else ""
        print(f"{self._what}: {self._done} of {self._total}{time_left}{detail}", file=sys.stderr, flush=True)
