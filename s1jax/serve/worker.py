"""The thread that steps the scheduler, and how the event loop reaches it: `Worker`.

    worker = Worker(lambda: Engine(checkpoint))
    worker.start()                         # loads, compiles; `worker.state` becomes "ready"
    ticket = await worker.submit(encoded)  # from the event loop only
    async for pieces in ticket:
        ...

All calls of jax happen in the worker's thread. The event loop puts commands into a queue, and the thread answers with
`loop.call_soon_threadsafe`, once for each look at the running sequences.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from s1jax.engine.engine import Engine
from s1jax.engine.scheduler import PIECE, STEPS, Scheduler
from s1jax.engine.scheduler import Stats as SchedulerStats
from s1jax.engine.sequence import Admitted, EncodedRequest, Event, Finished
from s1jax.errors import UserError
from s1jax.serve.ticket import Running, Ticket, Unavailable

State = Literal["loading", "ready", "draining", "failed", "stopped"]

_LOOK = 0.03  # seconds between two looks if someone streams or waits: how late the first token and a cancel can be
_LONG_LOOK = 0.05  # otherwise
_PREFILL_LOOK = 0.08  # a step that prefills and decodes takes no longer, if pieces of `_LEAST_PREFILL` tokens allow it
_LEAST_PREFILL = 64
_FIRST_STEPS = 4  # of a look, until the time of a step is known
_MOST_RETRY = 60  # seconds, of Retry-After

Command = Callable[[Scheduler], None]


class Observer(Protocol):
    """What is called for everything that happens to sequences; in the event loop."""

    def tokens(self, sequence: Running, new: int, gap: float | None) -> None:
        """A sequence has `new` tokens, `gap` seconds after those before; None: they are its first."""

    def finished(self, sequence: Running) -> None:
        """A sequence has its output."""

    def ended(self, ticket: Ticket, reason: str) -> None:
        """A request ended without output: `abort`, `shutdown` or `failed`."""

    def rejected(self, reason: str) -> None:
        """A request was refused because of `Unavailable.reason`."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a worker.

    Attributes:
      cache_tokens: tokens of the KV cache; 0: see `s1jax.engine.capacity.for_server`.
      waiting: sequences that may wait for a batch slot.
      waiting_tokens: prompt tokens that those may have together.
      stall_seconds: the scheduler may be without progress for so long; then `Worker.on_stall` is called.
    """

    cache_tokens: int = 0
    waiting: int = 256
    waiting_tokens: int = 1_000_000
    stall_seconds: float = 300.0


@dataclasses.dataclass(frozen=True)
class Stats:
    """Numbers of sequences: `running` in batch slots, `waiting` for one; `waiting_tokens`: prompt tokens of those."""

    running: int
    waiting: int
    waiting_tokens: int


class Worker:
    """Runs an engine in a thread of its own; see the module's text.

    Attributes:
      state: `loading` until all is compiled; `draining`: what runs is finished, nothing new is taken.
      error: why the state is `failed`.
      engine: None while it loads.
      length: the most tokens of a sequence; 0 while it loads.
      scheduler_stats: of the scheduler after its newest step; None while it loads.
      observer: see `Observer`.
      on_stall: called in a thread of its own if the scheduler makes no progress; that cannot be mended in the process.
      on_failure: called in the event loop with the error that ended the thread.
    """

    def __init__(self, make: Callable[[], Engine], limits: Limits | None = None, observer: Observer | None = None):
        """Starts nothing.

        Args:
          make: loads the engine; called in the worker's thread.
          limits: see `Limits`.
          observer: see `Observer`.
        """
        self.state: State = "loading"
        self.error: BaseException | None = None
        self.engine: Engine | None = None
        self.length = 0
        self.scheduler_stats: SchedulerStats | None = None
        self.on_stall: Callable[[], None] | None = None
        self.on_failure: Callable[[BaseException], None] | None = None
        self._make, self._limits, self.observer = make, limits or Limits(), observer
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._tickets: dict[Ticket, list[int]] = {}  # whose sequences are in the scheduler, with their numbers
        self._asking: set[asyncio.Future[int]] = set()  # how many sequences still thought
        self._entering: dict[Ticket, asyncio.Future[None]] = {}  # that the thread has not seen yet
        self._owners: dict[int, tuple[Ticket, int]] = {}  # number in the scheduler -> sequence
        self._slots = 1
        self._seconds = 0.0  # of a request, a moving mean
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._step_seconds = 0.0  # of a decode step, a moving mean
        self._max_prefill = _LEAST_PREFILL  # tokens, while sequences decode; by the measured time of steps
        self._hurry = False  # someone streams or waits
        self._progress: float | None = None  # when the scheduler last got on; None: it is idle

    def start(self) -> None:
        """Begins to load, in the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread.start()
        self._watchdog.start()

    async def ready(self) -> None:
        """Waits until requests can be submitted, or the worker has failed or stopped."""
        await self._ready.wait()

    async def submit(
        self,
        encoded: Sequence[EncodedRequest],
        *,
        samples: int = 1,
        streams: bool = True,
        priority: int = 0,
        salt: bytes = b"",
    ) -> Ticket:
        """Hands over the sequences of one request.

        Args:
          encoded: one for each sample.
          samples: how many of them have the same prompt, one after the other.
          streams: whether someone reads the pieces as they come.
          priority: lower is earlier.
          salt: requests with another one share no pages of the prefix cache.

        Raises:
          UserError: the request cannot be sampled: it is too long, for example.
          Unavailable: the queue is full, or the worker does not take requests.
        """
        self._check_room(encoded)
        assert self.engine is not None
        ticket = Ticket(
            self.engine.encoder, encoded, time.monotonic(), samples=samples, streams=streams, cancel=self._cancel
        )
        accepted: asyncio.Future[None] = self._loop.create_future()
        self._tickets[ticket], self._entering[ticket] = [], accepted
        self._note()

        def enter(scheduler: Scheduler) -> None:
            numbers: list[int] = []
            try:
                for each in encoded:
                    numbers.append(scheduler.submit(each, stream=True, priority=priority, salt=salt))
            except UserError as error:
                for number in numbers:
                    scheduler.cancel(number)
                self._post(self._refused, ticket, accepted, error)
            else:
                self._post(self._accepted, ticket, accepted, numbers)

        self._commands.put(enter)
        try:
            await accepted
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        return ticket

    async def end_thinking(self, ticket: Ticket) -> int:
        """Cuts the thinking of a request now; its answer follows.

        Returns:
          How many of its sequences were still thinking.

        Raises:
          Unavailable: the engine has failed or stopped.
        """
        numbers = self._tickets.get(ticket, [])
        if not numbers:
            return 0
        ended: asyncio.Future[int] = self._loop.create_future()
        self._asking.add(ended)
        ended.add_done_callback(self._asking.discard)

        def answer(count: int) -> None:
            if not ended.done():
                ended.set_result(count)

        self._commands.put(
            lambda scheduler: self._post(answer, sum(scheduler.end_thinking(number) for number in numbers))
        )
        return await ended

    def stats(self) -> Stats:
        """Returns what is known of the sequences now."""
        live = self._live()
        waiting = [each for each in live if each.times.admitted is None]
        tokens = sum(each.prompt_tokens for each in waiting)
        return Stats(len(live) - len(waiting), len(waiting), tokens)

    async def drain(self, seconds: float) -> int:
        """Takes no more requests and waits for those that run; the rest ends with an error.

        Returns:
          How many requests were ended.
        """
        if self.state == "ready":
            self.state = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        left = [ticket for ticket in self._tickets if not ticket.is_finished]
        for ticket in left:
            self._end(ticket, Unavailable("the server shuts down.", "shutdown", 1))
        return len(left)

    def stop(self) -> None:
        """Ends the thread after the step that runs; requests that are left get an error."""
        for ticket in list(self._tickets):
            self._end(ticket, Unavailable("the server shuts down.", "shutdown", 1))
        self._unanswered(Unavailable("the server shuts down.", "shutdown", 1))
        if self.state != "failed":
            self.state = "stopped"
        self._stopped.set()
        self._ready.set()
        self._commands.put(lambda scheduler: None)

    def join(self, seconds: float) -> None:
        """Waits for the end of the thread after `stop`: a process that ends while jax computes crashes."""
        self._thread.join(seconds)

    # In the event loop.

    def _live(self) -> list[Running]:
        return [each for ticket in self._tickets for each in ticket.sequences if each.output is None]

    def _note(self) -> None:
        """Notes whether someone streams or waits, and whether nobody is there."""
        live = self._live()
        self._hurry = any(t.streams for t in self._tickets) or any(each.times.admitted is None for each in live)
        self._idle.clear() if self._tickets else self._idle.set()

    def check(self) -> None:
        """Raises `Unavailable` if the worker does not take requests."""
        if self.state != "ready":
            messages = {
                "loading": "Loading model", "draining": "the server shuts down.", "stopped": "the server has stopped.",
                "failed": "the engine has failed.",
            }  # fmt: skip
            # Behind one address, another replica answers the next try while this one drains.
            again = self.state in ("loading", "draining")
            raise self._rejection(messages[self.state], self.state, 1 if again else 0)

    def _check_room(self, encoded: Sequence[EncodedRequest]) -> None:
        """Raises `Unavailable` if these sequences may not wait as well, and `UserError` if they never may."""
        self.check()
        assert self.engine is not None
        limits, stats, slots = self._limits, self.stats(), self._slots
        if len(encoded) > limits.waiting + slots:
            raise UserError(f"n is {len(encoded)}; this server takes at most {limits.waiting + slots} sequences.")
        free = max(slots - stats.running, 0)
        tokens = stats.waiting_tokens + sum(len(each.prompt) for each in encoded)
        if stats.waiting + len(encoded) > free + limits.waiting:
            what = f"{stats.waiting} sequences wait already"
        elif stats.waiting > free and tokens > limits.waiting_tokens:
            what = f"{stats.waiting_tokens} prompt tokens wait already"
        else:
            return
        seconds = math.ceil(self._seconds * max(stats.waiting, 1) / slots)
        raise self._rejection(f"the queue is full: {what}.", "queue_full", min(max(seconds, 1), _MOST_RETRY))

    def _rejection(self, message: str, reason: str, retry_after: int) -> Unavailable:
        if self.observer:
            self.observer.rejected(reason)
        return Unavailable(message, reason, retry_after)

    def _accepted(self, ticket: Ticket, accepted: asyncio.Future[None], numbers: list[int]) -> None:
        self._entering.pop(ticket, None)
        if ticket.is_finished:  # cancelled on the way
            self._commands.put(lambda scheduler: self._drop(scheduler, ticket, numbers))
        else:
            self._tickets[ticket] = numbers
            self._owners |= {number: (ticket, i) for i, number in enumerate(numbers)}
        if not accepted.done():
            accepted.set_result(None)

    def _refused(self, ticket: Ticket, accepted: asyncio.Future[None], error: UserError) -> None:
        self._forget(ticket)
        if not accepted.done():
            accepted.set_exception(error)

    def _fail(self, ticket: Ticket, error: Unavailable) -> None:
        """Gives whoever waits for a request an error."""
        ticket.fail(error)
        entering = self._entering.pop(ticket, None)
        if entering is not None and not entering.done():
            entering.set_exception(error)
        if self.observer:
            self.observer.ended(ticket, error.reason)

    def _forget(self, ticket: Ticket) -> None:
        self._entering.pop(ticket, None)
        for number in self._tickets.pop(ticket, ()):
            self._owners.pop(number, None)
        self._note()

    def _arrived(self, events: Sequence[Event], began: float, now: float) -> None:
        """Hands the events of one step to their tickets."""
        share = (now - began) / max(sum(not isinstance(event, Admitted) for event in events), 1)
        for event in events:
            ticket, index = self._owners.get(event.id, (None, 0))
            if ticket is None or ticket.is_finished:  # cancelled: the command is on its way
                continue
            sequence = ticket.sequences[index]
            if isinstance(event, Admitted):
                sequence.times.admitted = began
                continue
            sequence.device_seconds += share
            last, is_finished = sequence.times.last, isinstance(event, Finished)
            new = sequence.update(event.sample, began, now, is_finished)
            if self.observer and new:
                self.observer.tokens(sequence, new, None if last is None else now - last)
            if is_finished:
                seconds = now - sequence.times.submitted
                self._seconds = seconds if not self._seconds else 0.9 * self._seconds + 0.1 * seconds
                if self.observer:
                    self.observer.finished(sequence)
            if ticket.is_finished:
                self._forget(ticket)
            ticket.changed()
        self._note()

    def _cancel(self, ticket: Ticket) -> None:
        if self.observer:
            self.observer.ended(ticket, "abort")
        self._leave(ticket)

    def _end(self, ticket: Ticket, error: Unavailable) -> None:
        if not ticket.is_finished:
            self._fail(ticket, error)
            self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        numbers = self._tickets.get(ticket, [])
        if numbers:  # else they are on their way, see `_accepted`
            self._commands.put(lambda scheduler: self._drop(scheduler, ticket, numbers))

    def _unanswered(self, error: Unavailable) -> None:
        """Gives whoever waits in `end_thinking` an error."""
        for ended in list(self._asking):
            if not ended.done():
                ended.set_exception(error)

    def _failed(self, error: BaseException) -> None:
        self.state, self.error = "failed", error
        for ticket in list(self._tickets):
            if not ticket.is_finished:
                self._fail(ticket, Unavailable("the engine has failed.", "failed"))
        self._tickets.clear()
        self._owners.clear()
        self._unanswered(Unavailable("the engine has failed.", "failed"))
        self._note()
        self._ready.set()
        if self.on_failure:
            self.on_failure(error)

    def _loaded(self, engine: Engine, length: int) -> None:
        self.engine, self.length, self._slots = engine, length, engine.describe().batch_size
        if self.state == "loading":
            self.state = "ready"
        self._ready.set()

    # In the thread of the engine.

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function in the event loop, unless that is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        try:
            engine = self._make()
            scheduler = engine.open(self._limits.cache_tokens)
            scheduler.warm_up()
            self._post(self._loaded, engine, scheduler.max_tokens)
            self._serve(engine, scheduler)
        except BaseException as error:
            self._progress = None
            self._post(self._failed, error)

    def _serve(self, engine: Engine, scheduler: Scheduler) -> None:
        """Runs commands and steps until `stop`."""
        self.scheduler_stats = scheduler.stats()
        while not self._stopped.is_set():
            self._obey(scheduler)
            if scheduler.is_idle:
                self.scheduler_stats = scheduler.stats()
                continue
            counts = engine.counts
            before = (counts.admissions, counts.prefills, counts.steps)
            began = time.monotonic()
            events = scheduler.step(self._num_steps(), self._max_prefill)
            now = time.monotonic()
            after = (counts.admissions, counts.prefills, counts.steps)
            if events or after != before:
                self._progress = now
            prefilling, self.scheduler_stats = self.scheduler_stats.prefilling, scheduler.stats()
            steps = after[2] - before[2]
            if steps and after[:2] == before[:2] and not prefilling:
                seconds = (now - began) / steps
                self._step_seconds = 0.8 * self._step_seconds + 0.2 * seconds if self._step_seconds else seconds
            elif prefilling and steps:  # a piece of a prompt between the tokens of others
                factor = 0.5 if now - began > _PREFILL_LOOK else 2 if now - began < _PREFILL_LOOK / 4 else 1
                self._max_prefill = int(min(max(self._max_prefill * factor, _LEAST_PREFILL), PIECE))
            if events:
                self._post(self._arrived, events, began, now)

    def _obey(self, scheduler: Scheduler) -> None:
        """Runs the commands that have come; waits for one if there is nothing else to do."""
        if scheduler.is_idle:
            self._progress = None
            command = self._commands.get()
            self._progress = time.monotonic()
            command(scheduler)
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()(scheduler)

    def _num_steps(self) -> int:
        """Decode steps of the next look, by the measured time of a step."""
        if not self._step_seconds:
            return _FIRST_STEPS
        wanted = _LOOK if self._hurry else _LONG_LOOK
        return max(1, min(int(wanted / self._step_seconds), STEPS))

    def _drop(self, scheduler: Scheduler, ticket: Ticket, numbers: Sequence[int]) -> None:
        for number in numbers:
            scheduler.cancel(number)
        self._post(self._forget, ticket)

    # In the thread of the watchdog.

    def _watch(self) -> None:
        limit = self._limits.stall_seconds
        while not self._stopped.wait(min(limit / 4, 1.0)):
            progress = self._progress
            if progress is not None and time.monotonic() - progress > limit:
                if self.on_stall:
                    self.on_stall()
                return
