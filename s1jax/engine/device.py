"""Runs the sampling programs on one KV cache: the device side of a scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from s1jax.engine import budget as budget_lib
from s1jax.engine import programs
from s1jax.engine.capacity import Setup, Shape
from s1jax.model.batched_adapters import NONE

_PREFILL_PAGES = 8  # KV pages per iteration of attention in prefill, whose scores fill the caches of a CPU anyway
_NOWHERE = np.iinfo(np.int32).max  # past any page or slot: what is written there is dropped


class Device:
    """The arrays of all batch slots on the device."""

    def __init__(self, setup: Setup, shape: Shape):
        """Allocates the KV cache; compiles the program that does it.

        Args:
          setup: of the engine.
          shape: batch slots, pages, and the most tokens of a sequence.
        """
        self._setup, self._shape = setup, shape
        pages = shape.pages * setup.shards
        self._pool = f"{pages} pages"
        self._sizes = f"{shape.slots} x {shape.length} in {self._pool}"
        self._pieces = [setup.page_size]
        while self._pieces[-1] < min(programs.PIECE, shape.length):
            self._pieces.append(2 * self._pieces[-1])
        setup.counts.note(f"start {shape.slots} in {self._pool}")
        self._run = programs.start(
            setup.config, shape.slots, pages, setup.page_size, setup.cache_dtype, unstack=setup.unstack,
            mesh=setup.mesh,
        )  # fmt: skip

    def piece_for(self, num_ids: int) -> int:
        """Returns the size of the pieces in which so many tokens are prefilled: the smallest that holds them all."""
        return next((size for size in self._pieces if size >= num_ids), self._pieces[-1])

    def piece_within(self, most: int) -> int:
        """Returns the largest size of a piece that is at most `most`; a page if none is."""
        return max((size for size in self._pieces if size <= most), default=self._setup.page_size)

    def prefill(
        self,
        shard: int,
        ids: Sequence[int],
        size: int,
        start: int,
        pages: Sequence[int],
        limit: int,
        adapter: int = NONE,
    ) -> None:
        """Prefills a piece of a prompt.

        Args:
          shard: row shard of the sequence.
          ids: of the piece, at most `size`.
          size: one of `piece_for` or `piece_within`.
          start: tokens of the sequence before the piece.
          pages: of the sequence.
          limit: the most tokens of the sequence.
          adapter: number of its adapter.
        """
        setup = self._setup
        tokens = np.zeros((setup.shards, size), np.int32)
        table = np.zeros((setup.shards, self._shape.length // setup.page_size), np.int32)
        lengths, count = np.zeros(setup.shards, np.int32), np.zeros(setup.shards, np.int32)
        tokens[shard, : len(ids)], table[shard, : len(pages)] = ids, pages
        lengths[shard], count[shard] = start, len(ids)
        limits, adapters = np.full(setup.shards, limit, np.int32), np.full(setup.shards, adapter, np.int32)
        setup.counts.note(f"prefill {size} to {self._pool}, {table.shape[1]} a sequence")
        pool = programs.prefill(
            setup.params, self._run.pages, tokens, table, lengths, count, limits, adapters, config=setup.config,
            at_once=min(max(setup.pages_at_once, _PREFILL_PAGES), size // setup.page_size), dtype=setup.dtype,
            mesh=setup.mesh,
        )  # fmt: skip
        self._run = dataclasses.replace(self._run, pages=pool)

    def copy_page(self, shard: int, source: int, target: int) -> None:
        """Copies a page of a row shard to another one of it."""
        setup = self._setup
        from_, into = np.zeros(setup.shards, np.int32), np.full(setup.shards, _NOWHERE, np.int32)
        from_[shard], into[shard] = source, target
        setup.counts.note(f"copy_page in {self._pool}")
        pages = programs.copy_page(self._run.pages, from_, into, mesh=setup.mesh, kv_heads=setup.config.num_kv_heads)
        self._run = dataclasses.replace(self._run, pages=pages)

    def admit(
        self,
        settings: programs.Settings,
        slot: int,
        state: budget_lib.State,
        is_new: bool,
        length: int,
        seen: np.ndarray,
    ) -> None:
        """Puts a prefilled sequence into a slot; arguments as of `programs.admit`."""
        self._setup.counts.note(f"admit to {self._sizes}, {settings.rules.forced.shape[2]} forced")
        self._run = programs.admit(self._run, settings, np.int32(slot), state, np.bool_(is_new), np.int32(length), seen)

    def decode(self, settings: programs.Settings, steps: int, min_active: int) -> programs.Report:
        """Decodes; arguments as of `programs.decode`. Returns the report as NumPy arrays."""
        setup = self._setup
        setup.counts.loops += 1
        setup.counts.note(f"decode {self._sizes}, {settings.rules.forced.shape[2]} forced")
        self._run, report = programs.decode(
            setup.params, self._run, settings, np.int32(steps), np.int32(min_active), config=setup.config,
            at_once=setup.pages_at_once, in_place=setup.pages_in_place, dtype=setup.dtype, mesh=setup.mesh,
        )  # fmt: skip
        report = jax.device_get(report)
        setup.counts.steps += int(report.steps)
        return report

    def finish(self, slot: int) -> None:
        """Finishes the sequence in a slot at once."""
        self._setup.counts.note(f"finish {self._shape.slots} in {self._pool}")
        self._run = programs.finish(self._run, np.int32(slot))

    def end_thinking(self, settings: programs.Settings, slot: int) -> None:
        """Cuts the thinking of the sequence in a slot at once."""
        self._setup.counts.note(f"end_thinking in {self._sizes}, {settings.rules.forced.shape[2]} forced")
        self._run = programs.end_thinking(self._run, settings, np.int32(slot))

    def warm_up(self, settings: programs.Settings, blank: budget_lib.State, seen: np.ndarray) -> None:
        """Runs every program once, so that no request compiles one.

        Args:
          settings: of empty slots.
          blank: scalars.
          seen: uint32 [W].
        """
        nowhere = self._shape.slots
        for size in self._pieces:
            self.prefill(0, [], size, 0, [], 0)
        self.copy_page(0, 0, _NOWHERE)
        self.admit(settings, nowhere, blank, True, 0, seen)
        self.decode(settings, 1, 0)
        self.finish(nowhere)
        self.end_thinking(settings, nowhere)
