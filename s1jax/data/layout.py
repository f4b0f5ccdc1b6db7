"""Estimates the packed steps of a run from the number and total length of its rows, to plan without the data."""

from __future__ import annotations

import dataclasses

import numpy as np

from s1jax.config.experiment import Experiment
from s1jax.data.batches import Batches
from s1jax.data.packing import Example
from s1jax.errors import UserError

# Number of rows, total tokens and tokens of the longest row, as users of the published dataset counted them with Qwen's
# tokenizer.
KNOWN = {"s1k": (1000, 4_700_000, 9109)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The size of a run's steps.

    Attributes:
      steps: optimizer steps of the run.
      rows: rows per step, as many as the fullest one needs.
      sequences: average sequences per step.
      tokens: average tokens per step, without padding.
      pairs: average (query, key) pairs per step: n (n + 1) / 2 for a sequence of n tokens.
      lengths: of all sequences.
    """

    steps: int
    rows: int
    sequences: float
    tokens: float
    pairs: float
    lengths: np.ndarray


def lengths(count: int, total: float, longest: float) -> np.ndarray:
    """Made-up lengths with a given sum and maximum, int64 [count].

    The i-th of n is longest * (i / n) ** p, rounded up, with p such that the mean is total / count.
    """
    rank = np.arange(1, count + 1) / count
    return np.ceil(longest * rank ** (longest * count / total - 1)).astype(np.int64)


def layout(experiment: Experiment, count: int = 0, total: float = 0) -> Layout | None:
    """Packs made-up sequences into the steps of a run; returns None if their total length is not known.

    Args:
      experiment: whose `data`, `train.batch_size` or `batch_tokens`, `epochs` and `steps` matter.
      count: number of rows; 0: `data.num_rows`, what is known of `data.source`, or 1,000.
      total: tokens of all rows; 0: what is known of `data.source`, with its longest row. For another total the longest
        row has twice the mean, which makes all lengths up to it equally frequent.

    Raises:
      UserError: where a row would not fit into data.block_size, which `data.too_long` does not allow, the figures do
        not go together, or the run is too long to be laid out.
    """
    data, train = experiment.data, experiment.train
    known = KNOWN.get(data.source)
    if data.batching != "packed" or not (total or known):
        return None
    count = count or data.num_rows or (known[0] if known else 1000)
    longest = known[2] if known else 2 * total / count
    total = total or count * known[1] / known[0]  # type: ignore[index]  # one of them is there
    if total < count or total / count > longest:
        raise UserError(
            f"{count:,} rows of {total:,.0f} tokens have {total / count:,.1f} each, and the longest is taken to have"
            f" {longest:,.0f}; give the tokens of all rows together as --num_tokens."
        )
    made = lengths(count, total, longest)
    if data.too_long == "error" and made.max() > data.block_size:
        raise UserError(
            f"the longest of {count:,} rows of {total:,.0f} tokens is taken to have {made.max():,}, more than"
            f" data.block_size {data.block_size}; give a larger one, or data.too_long to drop or truncate."
        )
    made = made[made <= data.block_size] if data.too_long == "drop" else np.minimum(made, data.block_size)
    nothing = np.zeros(made.max(initial=0) + 1, np.int32)
    examples = [Example(nothing[: n + 1], nothing[: n + 1] > 0, "") for n in made]
    batches = Batches(
        examples,
        batch_size=train.batch_size,
        batch_tokens=train.batch_tokens,
        block_size=data.block_size,
        batching="packed",
        seed=data.seed,
        epochs=train.epochs,
        steps=train.steps,
    )
    epoch = batches.steps_per_epoch if train.steps else batches.num_steps / train.epochs
    return Layout(
        steps=batches.num_steps,
        rows=batches.num_rows,
        sequences=len(made) / epoch,
        tokens=float(made.sum()) / epoch,
        pairs=float((made * (made + 1) / 2).sum()) / epoch,
        lengths=made,
    )
