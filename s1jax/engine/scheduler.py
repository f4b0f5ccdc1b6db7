"""Host-side scheduler: assigns sequences to batch slots and allocates KV pages.

    scheduler = Scheduler(setup, shape, delimiters)
    number = scheduler.submit(request)
    while not scheduler.is_idle:
        for event in scheduler.step():
            ...

Requests may come at any time. One thread owns a scheduler; nothing in it is locked.

Axis letters: B batch slots.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from s1jax.engine import budget as budget_lib
from s1jax.engine import capacity, programs
from s1jax.engine import logits as logits_lib
from s1jax.engine.capacity import Setup, Shape
from s1jax.engine.pages import PagePool
from s1jax.engine.sequence import (
    EncodedRequest,
    Event,
    Finished,
    Sample,
    Tokens,
    check_request,
    until_stop,
)
from s1jax.engine.slots import SlotArrays
from s1jax.errors import UserError
from s1jax.model import cache as cache_lib
from s1jax.text.delimiters import Delimiters

STEPS = 64  # decode steps between two host synchronisations, which cost about 0.2 ms
_STOP_STEPS = 16  # if a request has stop strings, because what is sampled after one is thrown away
_PREFILL_PAGES = 8  # KV pages per iteration of attention in prefill, whose scores fill the caches of a CPU anyway
_REFILL = 16  # decode returns when a sixteenth of the slots is free and requests wait


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A request in the scheduler.

    Attributes:
      id: that `submit` returned.
      request: what is to be sampled.
      longest: the most tokens that its sequence can have.
      stream: whether `Tokens` events are wanted.
    """

    id: int
    request: EncodedRequest
    longest: int
    stream: bool


Order = Callable[[Sequence[Submitted]], Iterable[Submitted]]


def first_come(waiting: Sequence[Submitted]) -> Iterable[Submitted]:
    """Admission order for requests that arrive one by one: first come, first served."""
    return waiting


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


@dataclasses.dataclass
class _Prompt:
    """The prompt that was prefilled last.

    Attributes:
      ids: token ids of the prompt and think_start.
      pages: of all but its last token.
      shared: for each row shard with such a sequence, the full pages of the prompt in the pool.
    """

    ids: tuple[int, ...]
    pages: cache_lib.Pages
    shared: dict[int, list[int]]


class Scheduler:
    """Runs requests through batch slots; see the module's text."""

    def __init__(self, setup: Setup, shape: Shape, delimiters: Delimiters, *, order: Order = first_come):
        """Allocates the KV cache; compiles nothing.

        Args:
          setup: of the engine.
          shape: batch slots, pages and the most tokens of a sequence; `capacity.for_requests` chooses it for a batch.
          delimiters: shared by all requests.
          order: sorts the waiting requests; called when one was submitted.

        Raises:
          UserError: the delimiters do not fit the vocabulary.
        """
        self._setup, self._shape, self._delimiters, self._order = setup, shape, delimiters, order
        self._config = setup.config
        self._waiting: collections.deque[Submitted] = collections.deque()
        self._unsorted = False
        self._numbers = itertools.count()
        self._pools = [PagePool(shape.pages) for _ in range(setup.shards)]
        self._prompt: _Prompt | None = None
        self._running: list[Submitted | None] = [None] * shape.slots
        self._pages: list[list[int]] = [[] for _ in range(shape.slots)]
        self._arrays = SlotArrays(shape.slots, shape.length // setup.page_size, delimiters, self._config.vocab_size)
        pages = shape.pages * setup.shards
        self._rows = f"{shape.slots} x {shape.length}"
        self._sizes = f"{self._rows} in {pages} pages"
        setup.counts.note(f"start {self._sizes}")
        self._run = programs.start(
            self._config, shape.slots, shape.length, pages, setup.page_size, setup.cache_dtype, unstack=setup.unstack,
            mesh=setup.mesh,
        )  # fmt: skip
        self._state = self._run.state

    def submit(self, request: EncodedRequest, *, stream: bool = False) -> int:
        """Adds a request to the waiting ones.

        Args:
          request: what is to be sampled.
          stream: also return `Tokens` events.

        Returns:
          The request id, which its events have; 0, 1, ... in the order of submission.

        Raises:
          UserError: the request has bad token ids, or could outgrow the context length or the KV cache.
        """
        setup = self._setup
        tokens = check_request(request, self._delimiters, self._config, setup.cache_length)
        if tokens > self._shape.length or self._num_pages(tokens) > self._shape.pages:
            most = min(self._shape.length, self._shape.pages * setup.page_size)
            raise UserError(
                f"{request.name}: the sequence can have {tokens} tokens, but the KV cache holds {most}; lower"
                " max_thinking_tokens or max_answer_tokens, or shorten the prompt."
            )
        self._arrays.reserve(request.wait)
        added = Submitted(next(self._numbers), request, tokens, stream)
        self._waiting.append(added)
        self._unsorted = True
        return added.id

    def cancel(self, number: int) -> bool:
        """Drops a request; no event follows.

        Returns:
          False if there is no such request, for example because it is finished.
        """
        for waiting in self._waiting:
            if waiting.id == number:
                self._waiting.remove(waiting)
                return True
        for slot in self._occupied():
            if self._running_in(slot).id == number:
                self._finish(slot)
                self._release(slot)
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do: all requests are finished or cancelled."""
        return not self._waiting and not self._occupied()

    def step(self, max_steps: int = STEPS) -> list[Event]:
        """Admits waiting requests, decodes, and returns what happened.

        Args:
          max_steps: decode at most so many tokens of each sequence. Fewer are decoded if requests wait for slots that
            become empty, or if a request has stop strings.

        Returns:
          `Finished` for each request that is finished, `Tokens` for the others with `stream`.
        """
        if self.is_idle:
            return []
        self._admit()
        running = [self._running_in(slot) for slot in self._occupied()]
        has_stops = any(each.request.find_stop for each in running)
        self._decode(min(max_steps, _STOP_STEPS) if has_stops else max_steps)
        found = (self._look(slot) for slot in self._occupied())
        return [event for event in found if event is not None]

    def num_tokens(self) -> tuple[int, int]:
        """Returns how many tokens the running sequences have, and how many of them are thinking tokens."""
        slots = self._occupied()
        return int(np.sum(self._state.count[slots])), int(np.sum(self._state.thinking[slots]))

    def _occupied(self) -> list[int]:
        return [slot for slot, running in enumerate(self._running) if running is not None]

    def _running_in(self, slot: int) -> Submitted:
        running = self._running[slot]
        assert running is not None
        return running

    def _num_pages(self, tokens: int) -> int:
        return -(-tokens // self._setup.page_size)

    def _admit(self) -> None:
        """Fills empty slots, as long as requests wait and their shard has pages for the first of them."""
        if self._unsorted:
            self._waiting = collections.deque(self._order(list(self._waiting)))
            self._unsorted = False
        full: set[int] = set()
        for slot, running in enumerate(self._running):
            if not self._waiting:
                return
            shard = slot * self._setup.shards // len(self._running)
            if running is None and shard not in full:
                if self._try_admit(slot, shard, self._waiting[0]):
                    self._waiting.popleft()
                else:
                    full.add(shard)

    def _try_admit(self, slot: int, shard: int, added: Submitted) -> bool:
        """Puts a request into an empty slot; returns False, and does nothing, if the pool of its shard is full."""
        setup, request, pool = self._setup, added.request, self._pools[shard]
        ids = (*request.prompt, *self._delimiters.think_start)
        length = len(ids) - 1  # decoding feeds the last token
        if self._prompt is not None and self._prompt.ids != ids:
            self._forget_prompt()
        shared = self._prompt.shared.get(shard, []) if self._prompt else []
        own = pool.try_take(self._num_pages(added.longest) - len(shared))
        if own is None:
            return False
        if self._prompt is None:
            self._prompt = _Prompt(ids, self._prefill(ids), {})
        pages = shared + own
        if not shared:
            self._prompt.shared[shard] = pages[: length // setup.page_size]
        pool.incref(self._prompt.shared[shard])  # for this sequence, or for the prompt if they were taken just now
        self._running[slot], self._pages[slot] = added, pages
        self._arrays.write(slot, request, pages)
        used = self._num_pages(length)
        count = self._prompt.pages.keys.shape[1]
        places = np.full((setup.shards, count), np.iinfo(np.int32).max, np.int32)
        places[shard, len(shared) : used] = pages[len(shared) : used]
        setup.counts.admissions += 1
        setup.counts.note(f"admit {count * setup.page_size} to {self._sizes}, {self._arrays.capacity} forced")
        self._run = programs.admit(
            self._run, self._arrays.settings(), self._prompt.pages, places, np.int32(slot), np.int32(ids[-1]),
            np.int32(length), np.int32(len(self._delimiters.think_start)),
            logits_lib.words(ids, self._config.vocab_size), mesh=setup.mesh, kv_heads=self._config.num_kv_heads,
        )  # fmt: skip
        return True

    def _forget_prompt(self) -> None:
        if self._prompt is not None:
            for shard, pages in self._prompt.shared.items():
                self._pools[shard].decref(pages)
        self._prompt = None

    def _prefill(self, ids: tuple[int, ...]) -> cache_lib.Pages:
        setup = self._setup
        size = capacity.prefill_length(setup.page_size, len(ids) - 1)
        tokens = np.zeros(size, np.int32)
        tokens[: len(ids) - 1] = ids[:-1]
        setup.counts.prefills += 1
        setup.counts.note(f"prefill {size}")
        return programs.prefill(
            setup.params, tokens, np.int32(len(ids) - 1), config=self._config, size=setup.page_size,
            at_once=min(max(setup.pages_at_once, _PREFILL_PAGES), size // setup.page_size), dtype=setup.dtype,
            mesh=setup.mesh,
        )  # fmt: skip

    def _decode(self, steps: int) -> None:
        """Decodes up to `steps` tokens of each sequence, or until slots are free for waiting requests."""
        setup, busy = self._setup, len(self._occupied())
        min_active = max(busy - max(len(self._running) // _REFILL, 1), 0) if self._waiting else 0
        setup.counts.loops += 1
        setup.counts.note(f"decode {self._sizes}, {self._arrays.capacity} forced")
        self._run, taken = programs.decode(
            setup.params, self._run, self._arrays.settings(), np.int32(len(self._delimiters.think_start)),
            np.int32(steps), np.int32(min_active), config=self._config, at_once=setup.pages_at_once,
            in_place=setup.pages_in_place, dtype=setup.dtype, mesh=setup.mesh,
        )  # fmt: skip
        self._state, taken = jax.device_get((self._run.state, taken))
        setup.counts.steps += int(taken)

    def _look(self, slot: int) -> Event | None:
        """Returns the event of the sequence in a slot, if there is one; a finished sequence leaves its slot."""
        running, state = self._running_in(slot), self._state
        is_finished = state.phase[slot] == budget_lib.FINISHED
        may_stop = running.request.find_stop and state.phase[slot] == budget_lib.ANSWERING and state.answer[slot]
        if not (is_finished or may_stop or running.stream):
            return None
        sample = self._read(slot)
        if not is_finished and sample.stop_reason is not None:
            self._finish(slot)
            is_finished = True
        if is_finished:
            self._release(slot)
            return Finished(running.id, sample)
        return Tokens(running.id, sample) if running.stream else None

    def _finish(self, slot: int) -> None:
        self._setup.counts.note(f"finish {self._rows}")
        self._run = programs.finish(self._run, np.int32(slot))

    def _release(self, slot: int) -> None:
        self._pools[slot * self._setup.shards // len(self._running)].decref(self._pages[slot])
        self._running[slot], self._pages[slot] = None, []

    def _read(self, slot: int) -> Sample:
        """Returns what was sampled so far in a slot, up to a stop string if there is one."""
        state = self._state
        self._setup.counts.note(f"read_ids {self._rows}")
        ids, forced, logprobs = jax.device_get(
            programs.read_ids(self._run.ids, self._run.forced, self._run.logprob, np.int32(slot))
        )
        start = np.array(self._delimiters.think_start, np.int32)
        count = int(state.count[slot]) - len(start)
        ended = "" if state.phase[slot] != budget_lib.FINISHED else "stop" if state.stopped[slot] else "length"
        closed = "" if state.phase[slot] == budget_lib.THINKING else "cut" if state.cut[slot] else "natural"
        sample = Sample(
            ids=np.concatenate([start, ids[:count]]),
            forced=np.concatenate([np.ones(len(start), bool), forced[:count]]),
            thinking_tokens=int(state.thinking[slot]),
            answer_tokens=int(state.answer[slot]),
            waits=int(state.waits[slot]),
            thinking_end=closed,
            answer_end=ended,
            logprob=float(logprobs[:count].sum(dtype=np.float64)),
            logprobs=np.concatenate([np.zeros(len(start), np.float32), logprobs[:count]]),
        )
        return until_stop(self._running_in(slot).request, sample, self._delimiters)
