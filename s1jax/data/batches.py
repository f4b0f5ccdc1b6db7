"""Batches in an order that is a function of (seed, step), so that resuming is a step number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from s1jax.config import InputError
from s1jax.data import packing
from s1jax.data.packing import Batch, Example
from s1jax.data.s1k import Row, named
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

_AHEAD = 4  # batches made before they are asked for


def encode_rows(tokenizer: Tokenizer, fmt: chat.ChatFormat, rows: Sequence[Row]) -> list[Example]:
    """Encodes rows of text in a chat format.

    Raises:
      InputError: if the tokenizer lacks a delimiter of the format, or cannot encode a row (names it).
    """
    chat.check(tokenizer, fmt)
    examples = []
    for row in rows:
        with named(row):
            ids, supervised = chat.encode_row(tokenizer, fmt, row.question, row.trace, row.answer)
        examples.append(Example(ids, supervised, row.name))
    return examples


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the permutation of `count` examples in an epoch, int64 [count].

    The ranks of raw Philox draws: NumPy keeps a bit generator's stream over its versions, `Generator.permutation` not.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class Batches:
    """The batches of a run.

    An epoch takes ceil(examples / batch_size) steps and its last step may hold fewer sequences; it is filled up with
    all-zero rows. Every epoch has its own order. Both batchings hold the same sequences at the same step.

    Attributes:
      num_steps: steps of the run.
      steps_per_epoch: steps of one epoch.
      num_rows: rows of the global batch, the same at every step.
      filled_rows: how many of them the fullest step fills.
      block_size: T.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        block_size: int,
        batching: str = "padded",
        weighting: packing.Weighting = "sequence",
        seed: int = 0,
        epochs: int = 1,
        steps: int = 0,
        row_multiple: int = 1,
        share: int = 0,
        shares: int = 1,
    ):
        """Lays out the run; nothing is copied.

        Args:
          examples: of at most block_size + 1 ids, see `packing.fit`.
          batch_size: sequences per step over all processes.
          block_size: T.
          batching: `padded` or `packed`.
          weighting: see `packing.arrays`.
          seed: of the order.
          epochs: passes over the examples; ignored where `steps` is given.
          steps: steps of the run; 0 derives them from `epochs`.
          row_multiple: `num_rows` is rounded up to a multiple of it (gradient accumulation x shards of the batch).
          share: which of the contiguous parts of the rows `batch` returns.
          shares: number of the parts (`parallel.row_share` gives both).

        Raises:
          InputError: if there are no examples, or the rows do not divide among the processes.
        """
        if not examples:
            raise InputError("there are no rows to train on; give a data.source that has some.")
        self._examples = list(examples)
        self._lengths = [example.length for example in self._examples]
        self._batch_size = batch_size
        self._packed = batching == "packed"
        self._weighting = weighting
        self._seed = seed
        self.block_size = block_size
        self.steps_per_epoch = -(-len(self._examples) // batch_size)
        self.num_steps = steps or epochs * self.steps_per_epoch
        self._latest = -1, np.array([], np.int64)  # an epoch and its order; saves sorting anew at every step
        rows = batch_size
        if self._packed:
            rows = max(len(self._bins(self._members(step))) for step in range(self.num_steps))
        self.filled_rows = rows
        self.num_rows = -(-rows // row_multiple) * row_multiple
        if self.num_rows % shares:
            raise InputError(
                f"{self.num_rows} rows of a batch do not divide among {shares} processes; make"
                " train.batch_size a multiple of them."
            )
        size = self.num_rows // shares
        self._rows = slice(share * size, (share + 1) * size)

    @property
    def digest(self) -> str:
        """SHA-256 of all examples in their order: ids, and which of them are supervised."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(len(example.ids).to_bytes(8, "little"))
            digest.update(example.ids.astype("<i4").tobytes() + example.supervised.tobytes())
        return digest.hexdigest()

    def names(self, step: int) -> list[str]:
        """Returns where the sequences of a step came from, over all processes."""
        return [self._examples[i].name for i in self._members(step)]

    def batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch of a step, 0 <= step < num_steps; see `packing`."""
        members = self._members(step)
        bins = self._bins(members)[self._rows]
        rows = [[self._examples[i] for i in row] for row in bins]
        return packing.arrays(rows, self._rows.stop - self._rows.start, self.block_size, self._weighting)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of steps start, ..., num_steps - 1, made ahead by grain where it is installed."""
        steps = range(start, self.num_steps)
        try:
            import grain
        except ImportError:  # a machine without it computes the same batches in the loop
            return map(self.batch, steps)
        if not steps:
            return iter(())
        dataset = grain.MapDataset.range(start, self.num_steps).map(self.batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        return iter(dataset.to_iter_dataset(read_options=options))

    def _members(self, step: int) -> list[int]:
        """Returns the indices of the examples of a step."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        epoch, at = divmod(step, self.steps_per_epoch)
        known, permutation = self._latest  # read once: grain's threads may replace it meanwhile
        if known != epoch:
            permutation = order(self._seed, epoch, len(self._examples))
            self._latest = epoch, permutation
        return permutation[at * self._batch_size : (at + 1) * self._batch_size].tolist()

    def _bins(self, members: list[int]) -> list[list[int]]:
        """Returns the examples of each row of the global batch."""
        if not self._packed:
            return [[i] for i in members]
        return [
            [members[i] for i in row] for row in packing.first_fit([self._lengths[i] for i in members], self.block_size)
        ]
