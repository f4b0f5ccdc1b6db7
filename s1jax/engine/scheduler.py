"""The rows of one call on their way through the slots: who is where, with which pages. All of it on the host.

Axis letters: B slots, M pages of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from s1jax.engine import budget as budget_lib
from s1jax.engine import capacity
from s1jax.engine import logits as logits_lib
from s1jax.engine import programs as programs
from s1jax.engine.capacity import Setup
from s1jax.engine.sequence import EncodedRequest, Sample, answer_begin, check_length, longest
from s1jax.errors import UserError
from s1jax.model import cache as cache_lib
from s1jax.text.delimiters import Delimiters

_PREFILL_PAGES = 8  # that pieces of a prompt attend to at one time: their scores fill the caches of a processor anyway
_REFILL = 16  # a sixteenth of the slots may be empty before the loop is left to fill them


class _Pool:
    """Which pages of one row shard are in use, and by how many rows."""

    def __init__(self, count: int):
        self._uses = np.zeros(count, np.int32)

    def take(self, count: int) -> list[int]:
        """Finds `count` free pages: there are as many as the longest rows need that the slots can hold."""
        free = np.flatnonzero(self._uses == 0)[:count].tolist()
        assert len(free) == count
        self._uses[free] = 1
        return free

    def share(self, pages: Sequence[int]) -> None:
        """Has one more row use `pages`."""
        self._uses[list(pages)] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Has one row less use `pages`."""
        self._uses[list(pages)] -= 1


@dataclasses.dataclass
class _Prompt:
    """The prompt that was run last.

    Attributes:
      ids: of the prompt, think_start included.
      pages: of all but its last id.
      shared: in each row shard where a row with this prompt was put, the places of the pages that are full.
    """

    ids: tuple[int, ...]
    pages: cache_lib.Pages
    shared: dict[int, list[int]]


class Session:
    """The rows of one call on their way through the slots."""

    def __init__(self, setup: Setup, requests: Sequence[EncodedRequest], delimiters: Delimiters):
        self._setup, self._requests, self._delimiters = setup, requests, delimiters
        self._config = setup.config
        limits = [longest(request, delimiters) for request in requests]
        self._check(limits)
        longest_prompt = max(len(request.prompt) for request in requests) + len(delimiters.think_start) - 1
        shape = capacity.choose(setup, limits, longest_prompt)
        self._needs = [-(-limit // setup.page) for limit in limits]
        prompts = [request.prompt for request in requests]
        most: dict[tuple[int, ...], int] = {}
        for each, limit in zip(prompts, limits, strict=True):
            most[each] = max(limit, most.get(each, 0))
        # Rows with one prompt, which share a prefill, follow each other where the longest of them would stand.
        self._queue = sorted(range(len(requests)), key=lambda i: (most[prompts[i]], prompts[i], limits[i]))
        self._pools = [_Pool(shape.pages) for _ in range(setup.shards)]
        self._prompt: _Prompt | None = None
        self._held: list[list[int] | None] = [None] * shape.slots  # pages of the row in a slot
        self._table = np.zeros((shape.slots, shape.length // setup.page), np.int32)
        self._chosen = np.zeros(shape.slots, np.int32)  # its request, or the last one that was there
        self._sampling = logits_lib.Sampling.of([request.params for request in requests])
        self._budgets = budget_lib.Budgets.of([request.params for request in requests])
        waits = {wait: index for index, wait in enumerate(dict.fromkeys(request.wait for request in requests))}
        self._wait = np.array([waits[request.wait] for request in requests], np.int32)
        rules = budget_lib.Rules.of(delimiters, self._config.vocab_size, list(waits))
        # What all rows share goes to the device once.
        shared = {name: getattr(rules, name) for name in ("legal", "end", "stop", "newline", "pad")}
        self._rules = dataclasses.replace(rules, **jax.device_put(shared))
        pages = shape.pages * setup.shards
        self._rows = f"{shape.slots} x {shape.length}"
        self._sizes = f"{self._rows} in {pages} pages"
        self._forced = f"{rules.forced.shape[2]} forced"
        setup.counts.note(f"start {self._sizes}")
        self._run = programs.start(
            self._config, shape.slots, shape.length, pages, setup.page, setup.cache_dtype, unstack=setup.unstack,
            mesh=setup.mesh,
        )  # fmt: skip

    def _check(self, limits: Sequence[int]) -> None:
        config, cache_length = self._config, self._setup.cache_length
        limit = cache_length or config.context_length
        for request, ids in zip(self._requests, limits, strict=True):
            prompt, name = request.prompt, request.name
            if not prompt and not self._delimiters.think_start:
                raise UserError(f"{name}: the prompt is empty; give at least one id.")
            bad = [i for i in prompt if not 0 <= i < config.vocab_size]
            if bad:
                raise UserError(
                    f"{name}: prompt id {bad[0]} lies outside the model's vocabulary of {config.vocab_size} ids."
                )
            check_length(request, ids, limit, "cache length" if cache_length else "model's context length")

    def over(self) -> bool:
        """Whether all rows have ended and been released."""
        return not self._queue and not self.occupied()

    def occupied(self) -> list[int]:
        """Slots that hold a row."""
        return [slot for slot, held in enumerate(self._held) if held is not None]

    def admit(self) -> None:
        """Fills the empty slots, as far as there are rows."""
        for slot, held in enumerate(self._held):
            if held is None and self._queue:
                self._fill(slot, self._queue.pop())

    def _shard(self, slot: int) -> int:
        return slot * self._setup.shards // len(self._held)

    def _fill(self, slot: int, index: int) -> None:
        setup, request = self._setup, self._requests[index]
        ids = (*request.prompt, *self._delimiters.think_start)
        length = len(ids) - 1  # the loop feeds the last one
        shard = self._shard(slot)
        pool = self._pools[shard]
        if self._prompt is None or self._prompt.ids != ids:
            self._forget_prompt()
            self._prompt = _Prompt(ids, self._prefill(ids), {})
        shared = self._prompt.shared.get(shard, [])
        pages = shared + pool.take(self._needs[index] - len(shared))
        if not shared:
            self._prompt.shared[shard] = pages[: length // setup.page]
        pool.share(self._prompt.shared[shard])  # once more: by the prompt for the rows to come, or by this row
        self._held[slot], self._chosen[slot] = pages, index
        self._table[slot] = 0
        self._table[slot, : len(pages)] = pages
        used = -(-length // setup.page)
        count = self._prompt.pages.keys.shape[1]
        places = np.full((setup.shards, count), np.iinfo(np.int32).max, np.int32)
        places[shard, len(shared) : used] = pages[len(shared) : used]
        setup.counts.admissions += 1
        setup.counts.note(f"admit {count * setup.page} to {self._sizes}, {self._forced}")
        self._run = programs.admit(
            self._run, self._settings(), self._prompt.pages, places, np.int32(slot), np.int32(ids[-1]),
            np.int32(length), np.int32(len(self._delimiters.think_start)),
            logits_lib.words(ids, self._config.vocab_size), mesh=setup.mesh, kv_heads=self._config.num_kv_heads,
        )  # fmt: skip

    def _forget_prompt(self) -> None:
        if self._prompt is not None:
            for shard, pages in self._prompt.shared.items():
                self._pools[shard].free(pages)
        self._prompt = None

    def _prefill(self, ids: tuple[int, ...]) -> cache_lib.Pages:
        setup = self._setup
        size = capacity.prefill_slots(setup.page, len(ids) - 1)
        tokens = np.zeros(size, np.int32)
        tokens[: len(ids) - 1] = ids[:-1]
        setup.counts.prefills += 1
        setup.counts.note(f"prefill {size}")
        return programs.prefill(
            setup.params, tokens, np.int32(len(ids) - 1), config=self._config, size=setup.page,
            at_once=min(max(setup.pages_at_once, _PREFILL_PAGES), size // setup.page), dtype=setup.dtype,
            mesh=setup.mesh,
        )  # fmt: skip

    def _settings(self) -> programs.Settings:
        rows, waits = self._chosen, self._wait[self._chosen]
        return programs.Settings(
            jax.tree.map(lambda column: column[rows], self._sampling),
            jax.tree.map(lambda column: column[rows], self._budgets),
            dataclasses.replace(
                self._rules, forced=self._rules.forced[waits], forced_length=self._rules.forced_length[waits]
            ),
            self._table,  # type: ignore[arg-type]
        )

    def advance(self, steps: int) -> None:
        """Takes up to `steps` steps, or until slots are empty that others wait for."""
        setup, busy = self._setup, len(self.occupied())
        leave = max(busy - max(len(self._held) // _REFILL, 1), 0) if self._queue else 0
        setup.counts.loops += 1
        setup.counts.note(f"decode {self._sizes}, {self._forced}")
        self._run, taken = programs.decode(
            setup.params, self._run, self._settings(), np.int32(len(self._delimiters.think_start)),
            np.int32(steps), np.int32(leave), config=self._config, at_once=setup.pages_at_once,
            in_place=setup.pages_in_place, dtype=setup.dtype, mesh=setup.mesh,
        )  # fmt: skip
        self._state, taken = jax.device_get((self._run.state, taken))
        setup.counts.steps += int(taken)
        for slot in self.occupied():
            answers = self._state.phase[slot] == budget_lib.ANSWERING and self._state.answer[slot]
            if answers and self._request(slot).find_stop and self.read(slot).stop_reason is not None:
                self._finish(slot)

    def stops(self) -> bool:
        """Whether a row in a slot has stop strings, which only the host can look for."""
        return any(self._request(slot).find_stop for slot in self.occupied())

    def _request(self, slot: int) -> EncodedRequest:
        return self._requests[self._chosen[slot]]

    def _finish(self, slot: int) -> None:
        self._setup.counts.note(f"finish {self._rows}")
        self._run = programs.finish(self._run, np.int32(slot))
        phase = np.where(np.arange(len(self._held)) == slot, budget_lib.FINISHED, self._state.phase)
        self._state = dataclasses.replace(self._state, phase=phase)

    def ended(self) -> list[int]:
        """Slots whose row has ended."""
        return [slot for slot in self.occupied() if self._state.phase[slot] == budget_lib.FINISHED]

    def live(self) -> tuple[int, int]:
        """Ids, and thinking tokens among them, of the rows that are in slots."""
        slots = self.occupied()
        return int(self._state.count[slots].sum()), int(self._state.thinking[slots].sum())

    def release(self, slot: int) -> tuple[int, Sample]:
        """Takes an ended row out of its slot; returns its place among the requests and its sample."""
        sample = self.read(slot)
        self._pools[self._shard(slot)].free(self._held[slot] or [])
        self._held[slot] = None
        return int(self._chosen[slot]), sample

    def read(self, slot: int) -> Sample:
        """What the row in `slot` has emitted so far, up to a stop string if there is one."""
        state = self._state
        self._setup.counts.note(f"read_ids {self._rows}")
        ids, forced, logprob = jax.device_get(
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
            logprob=float(logprob[:count].sum(dtype=np.float64)),
            logprobs=np.concatenate([np.zeros(len(start), np.float32), logprob[:count]]),
        )
        return self._until_stop(self._request(slot), sample, logprob)

    def _until_stop(self, request: EncodedRequest, sample: Sample, logprob: np.ndarray) -> Sample:
        """Returns the sample up to the id that completes a stop string; `logprob` is float32 [S], of each id."""
        if request.find_stop is None or not sample.answer_tokens:
            return sample
        begin, num_forced = answer_begin(sample, self._delimiters)
        end = len(sample.ids) - (sample.answer_end == "stop")
        found = request.find_stop(sample.ids[begin:end].tolist(), num_forced)
        if found is None:
            return sample
        count = begin + found[0]
        return dataclasses.replace(
            sample,
            ids=sample.ids[:count],
            forced=sample.forced[:count],
            answer_tokens=found[0] - num_forced,
            answer_end="stop",
            stop_reason=found[1],
            logprob=float(logprob[: count - len(self._delimiters.think_start)].sum(dtype=np.float64)),
            logprobs=sample.logprobs[:count],
        )
