"""Packs examples into arrays of fixed size: one sequence per row (`padded`), or as many as fit (`packed`).

A batch is a dict of numpy arrays, all [rows, T] with T = block_size:
  tokens int32       inputs.
  targets int32      the token after each input.
  weights float32    weight of each target in the loss, sum(weights * nll) / sum(weights); 0 if it is not supervised.
  segment_ids int32  1, 2, ... for the sequences of a row, 0 for padding.
  positions int32    index in its own sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from s1jax.errors import UserError

Weighting = Literal["sequence", "token"]
TooLong = Literal["error", "drop", "truncate"]
Batch = dict[str, np.ndarray]
_WAITING = 32  # sequences that may wait for a later step while shorter ones are used


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example as token ids.

    Attributes:
      ids: int32 [n], n >= 2.
      supervised: bool [n], the ids that carry loss.
      name: where the row came from, for messages.
      source: index of its source in a mix (`s1jax.data.mix`).
    """

    ids: np.ndarray
    supervised: np.ndarray
    name: str
    source: int = 0

    @property
    def length(self) -> int:
        """Number of inputs, which is its length in a block: every token but the last."""
        return len(self.ids) - 1

    @property
    def num_targets(self) -> int:
        """Number of supervised targets."""
        return int(np.count_nonzero(self.supervised[1:]))


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Examples that fit the block, and the names of the others.

    Attributes:
      examples: in their old order, each with at most block_size + 1 tokens and a supervised target.
      dropped: names of rows left out.
      truncated: names of rows cut to block_size + 1 ids.
    """

    examples: list[Example]
    dropped: list[str]
    truncated: list[str]


def fit(examples: Sequence[Example], block_size: int, too_long: TooLong) -> Fitted:
    """Applies `too_long` to rows of more than `block_size` + 1 ids.

    An example whose supervised tokens would all be cut off is dropped, not truncated: nothing would be learned from it.

    Raises:
      UserError: for a long row if `too_long` is `error`, and if no row is left.
    """
    kept, dropped, truncated = [], [], []
    longest = max((len(example.ids) for example in examples), default=0)
    for example in examples:
        if example.length <= block_size:
            kept.append(example)
            continue
        if too_long == "error":
            over = sum(other.length > block_size for other in examples)
            raise UserError(
                f"{example.name} has {len(example.ids)} ids, more than data.block_size + 1 = {block_size + 1} (as"
                f" have {over} of {len(examples)} rows); set data.block_size to at least {longest - 1}, or"
                " data.too_long to drop or truncate."
            )
        cut = dataclasses.replace(
            example, ids=example.ids[: block_size + 1], supervised=example.supervised[: block_size + 1]
        )
        if too_long == "truncate" and cut.num_targets:
            kept.append(cut)
            truncated.append(example.name)
        else:
            dropped.append(example.name)
    if not kept:
        shortest = min(examples, key=lambda example: len(example.ids), default=None)
        which = f" (the shortest is {shortest.name} with {len(shortest.ids)})" if shortest else ""
        raise UserError(
            f"no row is left of {len(examples)}: {len(dropped)} are longer than data.block_size + 1 ="
            f" {block_size + 1} ids{which}; give more rows or a larger block."
        )
    return Fitted(kept, dropped, truncated)


def first_fit(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Packs items into bins of `block_size`: first fit, longest first.

    Args:
      lengths: of the items, each at most `block_size`.
      block_size: capacity of a bin.

    Returns:
      for each bin the indices of its items, in increasing order. Deterministic: equal lengths keep their order.
    """
    room: list[int] = []
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[item] > block_size:
            raise ValueError(f"item {item} of length {lengths[item]} does not fit into {block_size}")
        at = next((b for b, left in enumerate(room) if left >= lengths[item]), len(bins))
        if at == len(bins):
            bins.append([])
            room.append(block_size)
        bins[at].append(item)
        room[at] -= lengths[item]
    return [sorted(items) for items in bins]


def fill(lengths: Sequence[int], block_size: int, bins: int) -> list[list[list[int]]]:
    """Packs items, in their order, into steps of `bins` bins of `block_size`: each into the first bin with room.

    A step is full when `_WAITING` items have found no room in it. They wait and are the first of the next step. So an
    item moves to an earlier step only if a longer one had to wait.

    Args:
      lengths: of the items, each at most `block_size`.
      block_size: capacity of a bin.
      bins: of a step.

    Returns:
      for each step, for each of its bins that is not empty, the indices of its items in increasing order.
      Deterministic; every item is in exactly one step.
    """
    over = next((i for i, length in enumerate(lengths) if length > block_size), None)
    if over is not None:
        raise ValueError(f"item {over} of length {lengths[over]} does not fit into {block_size}")
    steps, waiting, after = [], list[int](), 0
    while waiting or after < len(lengths):
        room, step, left = [block_size] * bins, [list[int]() for _ in range(bins)], list[int]()
        early = iter(waiting)
        while len(left) < _WAITING:
            item = next(early, after)
            if item == after:
                if after == len(lengths):
                    break
                after += 1
            at = next((b for b, free in enumerate(room) if free >= lengths[item]), None)
            if at is None:
                left.append(item)
            else:
                step[at].append(item)
                room[at] -= lengths[item]
        waiting = [*left, *early]
        steps.append([sorted(items) for items in step if items])
    return steps


def arrays(rows: Sequence[Sequence[Example]], num_rows: int, block_size: int, weighting: Weighting) -> Batch:
    """Writes sequences into the arrays of a batch.

    Args:
      rows: for each row of the batch, its sequences in order.
      num_rows: rows of the result; rows beyond `rows` are all zero (segment 0, weight 0).
      block_size: T; each row's sequences fit into it.
      weighting: `token` gives every supervised target weight 1, `sequence` 1 / (supervised targets of its sequence).

    Returns:
      the batch, see the docstring of this file.
    """
    shape = (num_rows, block_size)
    batch: Batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["weights"] = np.zeros(shape, np.float32)
    for r, sequences in enumerate(rows):
        start = 0
        for segment, example in enumerate(sequences, start=1):
            place = slice(start, start + example.length)
            batch["tokens"][r, place] = example.ids[:-1]
            batch["targets"][r, place] = example.ids[1:]
            batch["segment_ids"][r, place] = segment
            batch["positions"][r, place] = np.arange(example.length)
            weight = 1.0 / max(example.num_targets, 1) if weighting == "sequence" else 1.0
            batch["weights"][r, place] = example.supervised[1:] * np.float32(weight)
            start += example.length
    return batch
