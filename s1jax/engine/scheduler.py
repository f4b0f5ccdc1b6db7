"""Host-side scheduler: assigns sequences to batch slots and allocates KV pages.

    scheduler = Scheduler(setup, shape, delimiters)
    number = scheduler.submit(request)
    while not scheduler.is_idle:
        for event in scheduler.step():
            ...

Requests may come at any time. One thread owns a scheduler; nothing in it is locked.

A step admits waiting requests to free slots, prefills pieces of their prompts, decodes, and looks at what was emitted.
While sequences decode, a step prefills few tokens, so that a long prompt does not hold them up. A sequence gets pages
as it grows. When none is left, pages of the prefix cache are freed; then the least urgent sequence is
preempted: it leaves its slot, waits, and is prefilled again with the tokens that it has.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable

import jax
import numpy as np

from s1jax.engine import budget as budget_lib
from s1jax.engine import logits as logits_lib
from s1jax.engine import programs
from s1jax.engine.capacity import Setup, Shape
from s1jax.engine.device import Device
from s1jax.engine.occupant import Occupant, prefix_of
from s1jax.engine.order import Order, Submitted, first_come, urgency
from s1jax.engine.pages import PagePool
from s1jax.engine.prefix import PrefixCache
from s1jax.engine.sequence import Admitted, EncodedRequest, Event, Finished, Tokens, check_request, until_stop
from s1jax.engine.slots import SlotArrays
from s1jax.errors import UserError
from s1jax.model.batched_adapters import NONE
from s1jax.text.delimiters import Delimiters

STEPS = programs.STEPS
PIECE = programs.PIECE  # tokens of a prompt that a step prefills while sequences decode, at most
_STOP_STEPS = 16  # if a request has stop strings, because what is sampled after one is thrown away
_PREFILL_STEPS = 4  # between two pieces of a prompt
_REFILL = 16  # decode returns when a sixteenth of the slots is free and requests wait


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a scheduler holds now and has done so far.

    Attributes:
      running: requests in slots.
      waiting: requests that wait for one.
      prefilling: requests in slots whose prompt is being prefilled.
      num_pages: of the KV cache.
      used_pages: that sequences hold; pages of the prefix cache alone do not count.
      preemptions: so far.
      cache_queries: tokens of prompts that were looked up in the prefix cache.
      cache_hits: of these, tokens that were found.
    """

    running: int
    waiting: int
    prefilling: int
    num_pages: int
    used_pages: int
    preemptions: int
    cache_queries: int
    cache_hits: int


class Scheduler:
    """Runs requests through batch slots; see the module's text."""

    def __init__(
        self,
        setup: Setup,
        shape: Shape,
        delimiters: Delimiters,
        *,
        order: Order = first_come,
        is_batch: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Allocates the KV cache; compiles nothing but that.

        Args:
          setup: of the engine.
          shape: batch slots, pages and the most tokens of a sequence; `capacity.for_requests` chooses it for a batch.
          delimiters: shared by all requests.
          order: sorts the waiting requests; called when one was submitted.
          is_batch: nobody waits for single requests: prompts are prefilled whole, as soon as there is a slot, and only
            equal prompts share pages, so that no output depends on what was sampled before.
          clock: seconds, for the order of requests.

        Raises:
          UserError: the delimiters do not fit the vocabulary.
        """
        self._setup, self._shape, self._delimiters, self._order = setup, shape, delimiters, order
        self._config, self._is_batch, self._clock = setup.config, is_batch, clock
        self._waiting: collections.deque[Submitted] = collections.deque()
        self._unsorted = False
        self._numbers = itertools.count()
        self._pools = [PagePool(shape.pages) for _ in range(setup.shards)]
        self._prefixes = [PrefixCache(pool, setup.page_size) for pool in self._pools]
        self._slots: list[Occupant | None] = [None] * shape.slots
        self._turn = 0  # of the sequence whose prompt is prefilled next
        self._preemptions = self._cache_queries = self._cache_hits = 0
        self._arrays = SlotArrays(shape.slots, shape.length // setup.page_size, delimiters, self._config.vocab_size)
        self._device = Device(setup, shape)

    def warm_up(self) -> None:
        """Compiles every program, so that no request does. For an idle scheduler."""
        start = len(self._delimiters.think_start)
        blank = budget_lib.on_host(0, start)
        self._device.warm_up(self._arrays.settings(), blank, logits_lib.words([], self._config.vocab_size))

    def submit(self, request: EncodedRequest, *, stream: bool = False, priority: int = 0, salt: bytes = b"") -> int:
        """Adds a request to the waiting ones.

        Args:
          request: what is to be sampled.
          stream: also return `Admitted` and `Tokens` events.
          priority: lower is earlier; see `order.first_come`.
          salt: requests with another one share no pages of the prefix cache.

        Returns:
          The request id, which its events have; 0, 1, ... in the order of submission.

        Raises:
          UserError: the request has bad token ids or an unknown adapter, or could outgrow the context length or the KV
            cache.
        """
        tokens = check_request(request, self._delimiters, self._config, self._setup.cache_length)
        if tokens > self.max_tokens:
            raise UserError(
                f"{request.name}: the sequence can have {tokens} tokens, but the KV cache holds {self.max_tokens};"
                " lower max_thinking_tokens or max_answer_tokens, or shorten the prompt."
            )
        self._adapter(request)
        self._arrays.reserve(request.wait)
        added = Submitted(
            next(self._numbers), request, tokens, stream, priority, self._clock(), salt, resume=request.resume
        )
        self._waiting.append(added)
        self._unsorted = True
        return added.id

    def cancel(self, number: int) -> bool:
        """Drops a request; no event follows.

        Returns:
          False if the request is unknown, for example because it is finished.
        """
        for waiting in self._waiting:
            if waiting.id == number:
                self._waiting.remove(waiting)
                return True
        for slot, occupant in self._occupied():
            if occupant.submitted.id == number:
                self._leave(slot)
                return True
        return False

    def end_thinking(self, number: int) -> bool:
        """Cuts the thinking of a request now; one that waits answers without thinking.

        Returns:
          False if the request has ended its thinking, or is unknown.
        """
        for place, waiting in enumerate(self._waiting):
            if waiting.id == number:
                self._waiting[place] = dataclasses.replace(waiting, end_thinking=_thinks(waiting))
                return _thinks(waiting)
        for slot, occupant in self._occupied():
            if occupant.submitted.id == number:
                if occupant.state is None:
                    thinks = _thinks(occupant.submitted)
                    occupant.submitted = dataclasses.replace(occupant.submitted, end_thinking=thinks)
                    return thinks
                if occupant.state.phase != budget_lib.THINKING:
                    return False
                self._end_thinking(slot, occupant)
                return True
        return False

    @property
    def max_tokens(self) -> int:
        """The most tokens that a sequence can have, prompt included."""
        limit = self._setup.cache_length or self._config.context_length  # a page may reach beyond it
        return min(limit, self._shape.length, self._shape.pages * self._setup.page_size)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do: all requests are finished or cancelled."""
        return not self._waiting and all(occupant is None for occupant in self._slots)

    def step(self, max_steps: int = STEPS, max_prefill: int = programs.PIECE) -> list[Event]:
        """Admits waiting requests, prefills, decodes, and returns what happened.

        Args:
          max_steps: decode at most so many tokens of each sequence, at most `STEPS`. Fewer are decoded if requests wait
            for slots that become empty, if a request has stop strings, or while prompts are prefilled.
          max_prefill: while sequences decode, prefill at most so many tokens, at least a page.

        Returns:
          `Finished` for each request that is finished, `Tokens` for the others with `stream` whose prompt is prefilled,
          before that `Admitted` once.
        """
        if self.is_idle:
            return []
        admitted = self._admit()
        self._prefill_pieces(max_prefill)
        steps = min(max_steps, STEPS)
        if any(occupant.submitted.request.find_stop for _, occupant in self._occupied()):
            steps = min(steps, _STOP_STEPS)
        if any(not occupant.is_decoding for _, occupant in self._occupied()):
            steps = min(steps, _PREFILL_STEPS)
        self._grow(steps)
        if not self._decoding():
            return admitted
        self._decode(steps)
        found = (self._look(slot, occupant) for slot, occupant in self._decoding())
        return admitted + [event for event in found if event is not None]

    def num_tokens(self) -> tuple[int, int]:
        """Returns how many tokens the running sequences have, and how many of them are thinking tokens."""
        states = [occupant.state for _, occupant in self._occupied() if occupant.state is not None]
        return sum(int(state.count) for state in states), sum(int(state.thinking) for state in states)

    def stats(self) -> Stats:
        """Returns what the scheduler holds now and has done so far."""
        occupants = [occupant for _, occupant in self._occupied()]
        free = sum(pool.num_free for pool in self._pools) + sum(prefix.num_unused() for prefix in self._prefixes)
        pages = self._shape.pages * self._setup.shards
        return Stats(
            running=len(occupants),
            waiting=len(self._waiting),
            prefilling=sum(not occupant.is_decoding for occupant in occupants),
            num_pages=pages,
            used_pages=pages - free,
            preemptions=self._preemptions,
            cache_queries=self._cache_queries,
            cache_hits=self._cache_hits,
        )

    def _occupied(self) -> list[tuple[int, Occupant]]:
        return [(slot, occupant) for slot, occupant in enumerate(self._slots) if occupant is not None]

    def _decoding(self) -> list[tuple[int, Occupant]]:
        return [(slot, occupant) for slot, occupant in self._occupied() if occupant.is_decoding]

    def _shard(self, slot: int) -> int:
        return slot * self._setup.shards // len(self._slots)

    def _num_pages(self, tokens: int) -> int:
        return -(-tokens // self._setup.page_size)

    def _salt(self, submitted: Submitted) -> bytes:
        """Sequences of another salt share no pages."""
        salt = submitted.salt
        if self._is_batch:
            salt = np.asarray(submitted.request.prompt, np.int32).tobytes()  # only equal prompts share pages
        if submitted.request.adapter:  # whose keys and values are others
            name = submitted.request.adapter.encode()
            salt = b"adapter" + len(name).to_bytes(4) + name + salt
        return salt + b"long" if self._has_long_rope(submitted) else salt

    def _adapter(self, request: EncodedRequest) -> int:
        """Number of the adapter of a request.

        Raises:
          UserError: the engine has no such adapter.
        """
        if not request.adapter:
            return NONE
        if request.adapter not in self._setup.adapters:
            names = ", ".join(self._setup.adapters) or "none"
            raise UserError(
                f"{request.name}: the engine has no adapter {request.adapter!r:.80}; it has {names}, as it was made."
            )
        return self._setup.adapters.index(request.adapter)

    def _has_long_rope(self, submitted: Submitted) -> bool:
        """Whether keys of the sequence are rotated by the frequencies of long sequences, see `cache.Cache`."""
        scaling = self._config.rope_scaling
        if scaling is None or not self._config.rope_depends_on_length:
            return False
        return submitted.longest > scaling.original_context_length

    # Admission and prefill.

    def _admit(self) -> list[Event]:
        """Fills empty slots, as long as requests wait and their shard has pages for the first of them."""
        events: list[Event] = []
        if self._unsorted:
            self._waiting = collections.deque(self._order(list(self._waiting)))
            self._unsorted = False
        full: set[int] = set()
        for slot, occupant in enumerate(self._slots):
            if not self._waiting:
                break
            shard = self._shard(slot)
            if occupant is None and shard not in full:
                admitted = self._try_admit(slot, shard, self._waiting[0])
                if admitted is None:
                    full.add(shard)
                    continue
                if self._waiting.popleft().cached_tokens is None and admitted.submitted.stream:
                    events.append(Admitted(admitted.submitted.id))
                self._slots[slot] = admitted
                while self._is_batch and admitted.to_prefill:
                    self._prefill_piece(slot, admitted, admitted.piece)
                if not admitted.to_prefill:
                    self._begin(slot, admitted)
        return events

    def _try_admit(self, slot: int, shard: int, submitted: Submitted) -> Occupant | None:
        """Returns a request as an occupant of a slot; None if it has to wait for pages or for an equal prompt."""
        setup, pool, prefix = self._setup, self._pools[shard], self._prefixes[shard]
        start = self._delimiters.think_start
        whole = prefix_of(submitted, start)
        ids, others = whole[:-1], self._occupied()
        salt = self._salt(submitted)
        if any(
            each.prefix == whole and not each.is_decoding and self._salt(each.submitted) == salt for _, each in others
        ):
            return None  # its pages will be in the prefix cache in a moment
        shared, partial = prefix.find(ids, salt)
        needed = self._num_pages(len(whole)) - len(shared)
        # A page for each running sequence stays free, so that the new one is not preempted at once.
        spare = sum(self._shard(place) == shard for place, _ in others)
        if not self._is_batch and needed + spare > pool.num_free + prefix.num_unused() and others:
            pool.decref(shared)
            return None
        if partial is not None:
            pool.incref([partial])
        prefix.evict(needed)
        own = pool.try_take(needed)
        if partial is not None:
            pool.decref([partial])
        if own is None:
            pool.decref(shared)
            return None
        cached = len(shared) * setup.page_size
        if partial is not None:
            self._device.copy_page(shard, partial, own[0])
            cached = len(ids)
        if submitted.cached_tokens is None:
            self._cache_queries += len(ids)
            self._cache_hits += cached
            submitted = dataclasses.replace(submitted, cached_tokens=cached)
        if cached < len(ids):
            setup.counts.prefills += 1
        return Occupant(submitted, shared + own, cached, self._device.piece_for(len(ids) - cached), start)

    def _prefill_pieces(self, most: int) -> None:
        """Prefills pieces of `most` tokens together; more, until a prompt is complete, if no sequence decodes."""
        left = most
        while left > 0 or not self._decoding():
            pending = [(slot, occupant) for slot, occupant in self._occupied() if not occupant.is_decoding]
            if not pending:
                return
            slot, occupant = pending[self._turn % len(pending)]
            self._turn += 1
            size = min(occupant.piece, self._device.piece_within(most)) if self._decoding() else occupant.piece
            self._prefill_piece(slot, occupant, size)
            left -= size
            if not occupant.to_prefill:
                self._begin(slot, occupant)

    def _prefill_piece(self, slot: int, occupant: Occupant, size: int) -> None:
        begin = occupant.num_cached
        count = min(size, occupant.to_prefill)
        ids = occupant.prefix[begin : begin + count]
        submitted = occupant.submitted
        adapter = self._adapter(submitted.request)
        self._device.prefill(self._shard(slot), ids, size, begin, occupant.pages, submitted.longest, adapter)
        occupant.num_cached += count

    def _begin(self, slot: int, occupant: Occupant) -> None:
        """Lets a sequence whose prompt is prefilled decode."""
        submitted, prefix = occupant.submitted, occupant.prefix
        cache = self._prefixes[self._shard(slot)]
        cache.add(prefix[:-1], occupant.pages, self._salt(submitted), partial=True)
        adapter = self._adapter(submitted.request)
        self._arrays.write(slot, submitted.request, occupant.pages, submitted.longest, adapter)
        new = budget_lib.on_host(prefix[-1], len(self._delimiters.think_start))
        state = new if submitted.resume is None else submitted.resume.state
        self._setup.counts.admissions += 1
        self._device.admit(
            self._arrays.settings(), slot, state, submitted.resume is None, len(prefix) - 1,
            logits_lib.words(prefix, self._config.vocab_size),
        )  # fmt: skip
        occupant.state = state
        if submitted.end_thinking:
            self._end_thinking(slot, occupant)

    def _end_thinking(self, slot: int, occupant: Occupant) -> None:
        self._device.end_thinking(self._arrays.settings(), slot)
        occupant.stopped = True

    # Decoding.

    def _grow(self, steps: int) -> None:
        """Gives every decoding sequence the pages for so many tokens; the least urgent ones are preempted for it."""
        by_urgency = sorted(self._decoding(), key=lambda each: urgency(each[1].submitted))
        for slot, occupant in by_urgency:
            pool, prefix = self._pools[self._shard(slot)], self._prefixes[self._shard(slot)]
            tokens = min(occupant.num_cached + steps, occupant.submitted.longest)
            missing = self._num_pages(tokens) - len(occupant.pages)
            while missing > 0 and self._slots[slot] is occupant:
                prefix.evict(missing)
                pages = pool.try_take(missing)
                if pages is not None:
                    occupant.pages += pages
                    self._arrays.write_pages(slot, occupant.pages)
                    break
                self._preempt(self._shard(slot))

    def _preempt(self, shard: int) -> None:
        """Puts the least urgent sequence of a row shard back among the waiting requests."""
        here = [(slot, occupant) for slot, occupant in self._occupied() if self._shard(slot) == shard]
        slot, occupant = max(here, key=lambda each: urgency(each[1].submitted))
        resume = occupant.resume()
        back = dataclasses.replace(
            occupant.submitted, resume=resume, end_thinking=occupant.submitted.end_thinking or occupant.stopped
        )
        self._leave(slot)
        self._preemptions += 1
        self._waiting.appendleft(back)
        self._unsorted = True

    def _decode(self, steps: int) -> None:
        """Decodes up to `steps` tokens of each sequence, or until slots are free for waiting requests."""
        decoding = self._decoding()
        min_active = max(len(decoding) - max(len(self._slots) // _REFILL, 1), 0) if self._waiting else 0
        report = self._device.decode(self._arrays.settings(), steps, min_active)
        ids, forced, logprobs = (np.asarray(column) for column in (report.ids, report.forced, report.logprobs))
        for slot, occupant in decoding:
            state = jax.tree.map(lambda column, slot=slot: column[slot], report.state)
            occupant.advance(state, ids[slot], forced[slot], logprobs[slot])

    def _look(self, slot: int, occupant: Occupant) -> Event | None:
        """Returns the event of the sequence in a slot, if there is one; a finished sequence leaves its slot."""
        state, submitted = occupant.state, occupant.submitted
        assert state is not None
        is_finished = state.phase == budget_lib.FINISHED
        may_stop = submitted.request.find_stop and state.phase == budget_lib.ANSWERING and state.answer
        if not (is_finished or may_stop or submitted.stream):
            return None
        sample = until_stop(submitted.request, occupant.sample(self._delimiters), self._delimiters)
        if is_finished or sample.stop_reason is not None:
            self._leave(slot)
            return Finished(submitted.id, sample)
        return Tokens(submitted.id, sample) if submitted.stream else None

    def _leave(self, slot: int) -> None:
        """Frees a slot; what its pages hold stays in the prefix cache as long as nobody needs them."""
        occupant, shard = self._slots[slot], self._shard(slot)
        assert occupant is not None
        if occupant.state is not None and occupant.state.phase != budget_lib.FINISHED:
            self._device.finish(slot)
        if not self._is_batch and occupant.is_decoding:
            self._prefixes[shard].add(occupant.tokens(), occupant.pages, self._salt(occupant.submitted))
        self._pools[shard].decref(occupant.pages)
        self._slots[slot] = None


def _thinks(submitted: Submitted) -> bool:
    """Whether a sequence that is not decoding will think on; one that was preempted may have its answer begun."""
    return submitted.resume is None or bool(submitted.resume.state.phase == budget_lib.THINKING)
