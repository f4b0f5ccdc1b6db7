"""Batches as a pure function of (seed, step), so that a resumed run only needs its step number."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from s1jax.data import mix, packing, turns
from s1jax.data.packing import Batch, Example
from s1jax.data.s1k import Row, named
from s1jax.errors import UserError
from s1jax.text import chat, conversation
from s1jax.text.tokenizer import Tokenizer

_AHEAD = 4  # batches made before they are asked for
_MOST_STEPS = 2**31 - 1  # the optimizer counts in int32
# Limit of sequences that are packed before training, which finds the fullest step or the number of steps.
_MOST_PACKED = 5_000_000


def encode_rows(tokenizer: Tokenizer, fmt: chat.ChatFormat, rows: Sequence[Row]) -> list[Example]:
    """Encodes rows of text in a chat format.

    Raises:
      UserError: if the tokenizer lacks a delimiter of the format, or cannot encode a row (names it).
    """
    chat.check(tokenizer, fmt)
    # harmony drops earlier thinking as well, but its template knows its own delimiters only.
    knows_tags = conversation.earlier_thinking(fmt) != "keep" and turns.TAGS[0][1] in fmt.think_end
    examples = []
    for row in rows:
        messages = row.messages if knows_tags else turns.without_tags(row.messages)
        with named(row):
            ids, supervised = conversation.encode_row(tokenizer, fmt, messages, row.trace, row.answer)
        examples.append(Example(ids, supervised, row.name, row.source))
    return examples


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the permutation of `count` examples in an epoch, int64 [count].

    It ranks raw Philox draws: NumPy keeps the stream of a bit generator over its versions, but not
    `Generator.permutation`.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class Teacher(Protocol):
    """Targets of a teacher for every example, see `s1jax.data.teacher_logits.Folder`."""

    def digest(self, example: Example) -> bytes:
        """SHA-256 of an example's targets."""
        ...

    def arrays(self, rows: Sequence[Sequence[Example]], num_rows: int, block_size: int) -> Batch:
        """Arrays [num_rows, block_size, ...], at the places that `packing.arrays` gives to the same rows."""
        ...


class Batches:
    """The batches of a run.

    Every epoch has its own order. With `batch_size`, an epoch takes ceil(examples / batch_size) steps. Its last step
    may have fewer sequences; all-zero rows fill it up. Padded and packed batches have the same sequences at the same
    step. With `batch_tokens`, a step takes as many whole sequences of the epoch's order as fit into its rows, see
    `packing.fill`; the last step of an epoch takes the rest. The content of a step does not depend on the devices, nor
    on the number of steps or epochs of the run.

    Attributes:
      examples: of the run.
      num_steps: steps of the run.
      num_rows: rows of the global batch, the same at every step.
      filled_rows: how many of them the fullest step fills.
      block_size: T.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int = 0,
        block_size: int,
        batch_tokens: int = 0,
        batching: str = "padded",
        weighting: packing.Weighting = "sequence",
        seed: int = 0,
        epochs: int = 1,
        steps: int = 0,
        row_multiple: int = 1,
        share: int = 0,
        shares: int = 1,
        teacher: Teacher | None = None,
        taken: Sequence[int] = (),
    ):
        """Plans the steps of the run; copies nothing.

        Args:
          examples: of at most block_size + 1 ids, see `packing.fit`.
          batch_size: sequences per step over all processes; 0 where `batch_tokens` is given.
          block_size: T.
          batch_tokens: places per step over all processes, rounded down to whole rows; packed batches only.
          batching: `padded` or `packed`.
          weighting: see `packing.arrays`.
          seed: of the order.
          epochs: passes over the examples; not used where `steps` is given.
          steps: steps of the run; 0 derives them from `epochs`.
          row_multiple: `num_rows` is rounded up to a multiple of it (gradient accumulation x shards of the batch).
          share: which of the contiguous parts of the rows `batch` returns.
          shares: number of the parts (`parallel.row_share` gives both).
          teacher: whose targets the batches have as well; None: they have none.
          taken: examples that an epoch takes of each source of a mix (`s1jax.data.mix.takes`); the examples are in the
            order of their sources. Empty: all of them.

        Raises:
          UserError: if there are no examples, the rows do not divide among the processes, or the run is too long.
        """
        if not examples:
            raise UserError("there are no rows to train on; give a data.source that has some.")
        self.examples = list(examples)
        self._lengths = [example.length for example in self.examples]
        self._batch_size = batch_size
        self._packed = batching == "packed"
        self._bins_a_step = batch_tokens // block_size  # 0: by the number of sequences
        self._weighting = weighting
        self._seed = seed
        self._taken = tuple(taken)
        self._sizes = [sum(example.source == i for example in examples) for i in range(len(taken))]
        self._per_epoch = sum(taken) or len(self.examples)
        self._teacher = teacher
        self.block_size = block_size
        self._latest = -1, np.array([], np.int64)  # an epoch and its order; saves sorting again at every step
        self._filled: tuple[int, list[list[list[int]]]] = -1, []  # an epoch and the rows of its steps
        self._ends = [0]  # the steps after 0, 1, ... epochs, as far as they are known
        self.num_steps = steps or self._count_steps(epochs)
        if self.num_steps > _MOST_STEPS:
            raise UserError(f"a run of {self.num_steps:,} steps is too long; give at most {_MOST_STEPS:,} steps.")
        self.filled_rows = self._bins_a_step or (self._worst() if self._packed else batch_size)
        self.num_rows = -(-self.filled_rows // row_multiple) * row_multiple
        if self.num_rows % shares:
            raise UserError(
                f"{self.num_rows} rows of a batch do not divide among {shares} processes; make"
                f" train.{'batch_tokens' if batch_tokens else 'batch_size'} a multiple of them."
            )
        size = self.num_rows // shares
        self._rows = slice(share * size, (share + 1) * size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch. With `batch_tokens` epochs differ by a few steps; this is the first one."""
        return self._end(1)

    @property
    def sequences_per_step(self) -> float:
        """Mean over the first epoch."""
        return self._per_epoch / self.steps_per_epoch

    @property
    def tokens_per_step(self) -> float:
        """Mean over the first epoch, padding left out."""
        return sum(self._lengths[i] for i in self._order(0).tolist()) / self.steps_per_epoch

    @property
    def padding(self) -> float:
        """Share of padding in the first epoch."""
        return 1 - self.tokens_per_step / (self.num_rows * self.block_size)

    @property
    def digest(self) -> str:
        """SHA-256 of all examples in their order (ids, which are supervised, a teacher's targets) and of their mix."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(len(example.ids).to_bytes(8, "little"))
            digest.update(example.ids.astype("<i4").tobytes() + example.supervised.tobytes())
            if self._teacher is not None:
                digest.update(self._teacher.digest(example))
        if self._taken:
            digest.update(repr((self._sizes, self._taken)).encode())
        return digest.hexdigest()

    def names(self, step: int) -> list[str]:
        """Returns the names of the sequences of a step, over all processes."""
        return [self.examples[i].name for i in self._members(step)]

    def batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch of a step, 0 <= step < num_steps; see `packing`."""
        bins = self._bins(step)[self._rows]
        rows = [[self.examples[i] for i in row] for row in bins]
        count = self._rows.stop - self._rows.start
        batch = packing.arrays(rows, count, self.block_size, self._weighting)
        return batch if self._teacher is None else batch | self._teacher.arrays(rows, count, self.block_size)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of steps start, ..., num_steps - 1; grain makes them ahead if it is installed."""
        steps = range(start, self.num_steps)
        try:
            import grain
        except ImportError:  # the same batches, made in the loop; `sources.make` says so
            return map(self.batch, steps)
        if not steps:
            return iter(())
        dataset = grain.MapDataset.range(start, self.num_steps).map(self.batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        return iter(dataset.to_iter_dataset(read_options=options))

    def _members(self, step: int) -> list[int]:
        """Returns the indices of the examples of a step."""
        epoch, at = self._place(step)
        if self._bins_a_step:
            return [i for row in self._fill(epoch)[at] for i in row]
        return self._order(epoch)[at * self._batch_size : (at + 1) * self._batch_size].tolist()

    def _bins(self, step: int) -> list[list[int]]:
        """Returns the examples of each row of the global batch."""
        if self._bins_a_step:
            epoch, at = self._place(step)
            return self._fill(epoch)[at]
        members = self._members(step)
        if not self._packed:
            return [[i] for i in members]
        return [
            [members[i] for i in row] for row in packing.first_fit([self._lengths[i] for i in members], self.block_size)
        ]

    def _place(self, step: int) -> tuple[int, int]:
        """Returns the epoch of a step, and its index in that epoch."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        if not self._bins_a_step:
            return divmod(step, self.steps_per_epoch)
        while self._ends[-1] <= step:
            self._end(len(self._ends))
        epoch = bisect.bisect_right(self._ends, step) - 1
        return epoch, step - self._ends[epoch]

    def _order(self, epoch: int) -> np.ndarray:
        known, permutation = self._latest  # read once: grain's threads may replace it in the meantime
        if known != epoch:
            if self._taken:
                permutation = mix.order(self._seed, epoch, self._sizes, self._taken)
            else:
                permutation = order(self._seed, epoch, len(self.examples))
            self._latest = epoch, permutation
        return permutation

    def _fill(self, epoch: int) -> list[list[list[int]]]:
        """Returns the examples of each row of each step of an epoch, by `batch_tokens`."""
        known, steps = self._filled  # read once, as in _order
        if known != epoch:
            permutation = self._order(epoch).tolist()
            lengths = [self._lengths[i] for i in permutation]
            filled = packing.fill(lengths, self.block_size, self._bins_a_step)
            steps = [[[permutation[i] for i in row] for row in rows] for rows in filled]
            self._filled = epoch, steps
        return steps

    def _end(self, epochs: int) -> int:
        """Returns the number of steps of `epochs` epochs."""
        if not self._bins_a_step:
            return epochs * -(-self._per_epoch // self._batch_size)
        for epoch in range(len(self._ends) - 1, epochs):
            # By index, because a thread of grain may do the same at the same time.
            self._ends[epoch + 1 : epoch + 2] = [self._ends[epoch] + len(self._fill(epoch))]
        return self._ends[epochs]

    def _count_steps(self, epochs: int) -> int:
        if self._bins_a_step:
            self._check_packed(epochs * self._per_epoch, f"train.epochs={epochs:,}", "fewer, or give train.steps")
        return self._end(epochs)

    def _worst(self) -> int:
        """Returns the rows of the step that needs the most of them."""
        remedy = "fewer, or give train.batch_tokens instead of train.batch_size"
        self._check_packed(self.num_steps * self._batch_size, f"a run of {self.num_steps:,} steps", remedy)
        return max(len(self._bins(step)) for step in range(self.num_steps))

    def _check_packed(self, sequences: int, what: str, remedy: str) -> None:
        if sequences > _MOST_PACKED:
            raise UserError(
                f"{what} packs {sequences:,} sequences, which are laid out before training starts, at most"
                f" {_MOST_PACKED:,}; take {remedy}."
            )
