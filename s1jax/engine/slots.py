"""Per-slot arrays: what the decode program reads of the request in each batch slot.

Axis letters: B batch slots, M pages of a sequence, Q capacity of a forced sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from s1jax.config.sampling import SamplingParams
from s1jax.engine import budget as budget_lib
from s1jax.engine import logits as logits_lib
from s1jax.engine import programs
from s1jax.engine.sequence import EncodedRequest
from s1jax.model.batched_adapters import NONE
from s1jax.text.delimiters import Delimiters


class SlotArrays:
    """NumPy arrays with a row for each batch slot, which is written when a request is admitted."""

    def __init__(self, slots: int, width: int, delimiters: Delimiters, vocab_size: int):
        """Makes the arrays of empty slots.

        Args:
          slots: B.
          width: M.
          delimiters: shared by all requests.
          vocab_size: of the model.

        Raises:
          UserError: the delimiters do not fit the vocabulary.
        """
        self._delimiters, self._vocab_size = delimiters, vocab_size
        empty = [SamplingParams()] * slots
        self._sampling, self._budgets = logits_lib.Sampling.of(empty), budget_lib.Budgets.of(empty)
        rules = budget_lib.Rules.of(delimiters, vocab_size, [()] * slots)
        # What all requests share goes to the device once.
        shared = {name: getattr(rules, name) for name in ("legal", "end", "stop", "newline", "pad")}
        self._rules = dataclasses.replace(rules, **jax.device_put(shared))
        self._forced = np.asarray(rules.forced)
        self._forced_length = np.asarray(rules.forced_length)
        self._table = np.zeros((slots, width), np.int32)
        self._limits = np.zeros(slots, np.int32)
        self._adapters = np.full(slots, NONE, np.int32)

    @property
    def capacity(self) -> int:
        """Q; programs are compiled for it."""
        return self._forced.shape[2]

    def reserve(self, wait: Sequence[int]) -> None:
        """Makes room for a wait of so many tokens; one that is longer than all before it means new programs.

        Raises:
          UserError: a token id of the wait is outside the vocabulary.
        """
        budget_lib.check_ids(wait, self._vocab_size)
        if len(wait) > self.capacity:
            more = budget_lib.capacity_for(len(wait)) - self.capacity
            self._forced = np.pad(self._forced, ((0, 0), (0, 0), (0, more)))

    def write(self, slot: int, request: EncodedRequest, pages: Sequence[int], limit: int, adapter: int = NONE) -> None:
        """Writes the row of a slot.

        Args:
          slot: of the request.
          request: its wait has been reserved.
          pages: of its sequence.
          limit: the most tokens of the sequence.
          adapter: number of its adapter.
        """
        own = (
            logits_lib.Sampling.of([request.params]),
            budget_lib.Budgets.of([request.params], len(self._delimiters.think_start)),
        )
        columns = jax.tree.leaves((self._sampling, self._budgets))
        for column, value in zip(columns, jax.tree.leaves(own), strict=True):
            column[slot] = value[0]
        self._forced[slot, budget_lib.WAIT] = 0
        self._forced[slot, budget_lib.WAIT, : len(request.wait)] = request.wait
        self._forced_length[slot, budget_lib.WAIT] = len(request.wait)
        self._limits[slot] = limit
        self._adapters[slot] = adapter
        self.write_pages(slot, pages)

    def write_pages(self, slot: int, pages: Sequence[int]) -> None:
        """Writes the pages of the sequence in a slot."""
        self._table[slot] = 0
        self._table[slot, : len(pages)] = pages

    def settings(self) -> programs.Settings:
        """Returns the arguments of the programs: copies, because a program may still read them at the next write."""
        sampling, budgets = jax.tree.map(np.copy, (self._sampling, self._budgets))
        rules = dataclasses.replace(
            self._rules,
            forced=self._forced.copy(),  # type: ignore[arg-type]
            forced_length=self._forced_length.copy(),  # type: ignore[arg-type]
        )
        own: Any = [column.copy() for column in (self._table, self._limits, self._adapters)]
        return programs.Settings(sampling, budgets, rules, *own)
