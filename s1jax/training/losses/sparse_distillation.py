"""Distillation from stored targets: a teacher's k most probable ids with the mass of the rest, or counts of draws.

K are a position's ids, t the teacher's probabilities, s the student's, T = sum_K t, S = sum_K s.

Top-k: sum_K t log(t / s) + (1 - T) log((1 - T) / (1 - S)), the forward KL of the two distributions with all other ids
as one. Its gradient for the student's logits is s - t within K and s (1 - (1 - T) / (1 - S)) elsewhere. A student with
nearly all of its mass outside K has a large loss; it can have none where both are divided by their sums over K.

Counts c of N draws from t: -sum (c / N) log s, whose gradient is s - c / N. Its expectation is that of the
forward KL, whatever N is (Sparse Logit Sampling, arXiv 2503.16870).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from s1jax.training.losses import chunks, cross_entropy

_NAMES = ("targets", "teacher_ids", "teacher_probabilities", "teacher_rest")


def batch_loss(
    weight: float,
    legal: jax.Array | np.ndarray | None,
    hidden: jax.Array,
    kernel: jax.Array,
    batch: Mapping[str, jax.Array],
    chunk: int,
    mesh: Mesh | None,
    teacher: chunks.Head | None = None,
    softcap: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch, with its parts `cross_entropy` and `distillation`: a `step.Loss` but for two arguments.

    Args:
      weight: share of the distillation; cross-entropy has the rest.
      legal: bool [V], the ids that the tokenizer has; no other id has mass in the distillation. None: all.
      hidden: [B, T, D], of the student.
      kernel: [D, V], of the student.
      batch: with `targets` and `weights` [B, T] and the arrays of `s1jax.data.teacher_logits.Folder.arrays`; those of
        top-k have `teacher_rest`.
      chunk: see `chunks.weighted_sum`.
      mesh: see `chunks.weighted_sum`.
      teacher: is not used.
      softcap: of the student's logits, see `chunks.Head`.

    Returns:
      float32 scalars: (1 - weight) * cross_entropy + weight * distillation, and both by name; each is the sum of
      weights * (loss of a token).
    """
    tokens = {name: batch[name] for name in _NAMES if name in batch}
    legal = None if legal is None else jnp.asarray(legal)
    rule = Mixed(weight)
    return chunks.weighted_sum(hidden, kernel, batch["weights"], tokens, None, legal, rule, chunk, mesh, softcap)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The loss of stored targets mixed with cross-entropy, as a `chunks.Rule`; the latter is over all columns."""

    weight: float

    def __call__(
        self,
        logits: jax.Array,
        teacher: jax.Array | None,
        tokens: Mapping[str, jax.Array],
        columns: chunks.Columns,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        value, gradient = of_tokens(columns.masked(logits), tokens, columns)
        return cross_entropy.mixed(self.weight, value, gradient, logits, tokens, columns)


def of_tokens(
    logits: jax.Array, tokens: Mapping[str, jax.Array], columns: chunks.Columns
) -> tuple[jax.Array, jax.Array]:
    """Returns the value [b, C] and the gradient [b, C, v] of each token's loss, see the top of this file."""
    ids, t, rest = tokens["teacher_ids"], tokens["teacher_probabilities"], tokens.get("teacher_rest")
    top = columns.max(logits.max(-1, keepdims=True))
    exponentials = jnp.exp(logits - top)
    norm, picked = columns.sum((exponentials.sum(-1, keepdims=True), columns.pick(logits, ids)))
    log_norm = top + jnp.log(norm)
    log_s, gradient, there = picked - log_norm, exponentials / norm, t > 0  # log_s [b, C, K]
    if rest is None:
        return -jnp.where(there, t * log_s, 0).sum(-1), columns.put(gradient, ids, -t)
    own = jnp.where(there, t * (jnp.log(jnp.where(there, t, 1)) - log_s), 0).sum(-1)
    outside, log_outside = _outside(logits, ids, columns)
    others = rest * (jnp.log(jnp.where(rest > 0, rest, 1)) - (log_outside - log_norm[..., 0]))
    gradient = columns.put(gradient - rest[..., None] * outside, ids, -t)
    return own + jnp.where(rest > 0, others, 0), gradient


def _outside(logits: jax.Array, ids: jax.Array, columns: chunks.Columns) -> tuple[jax.Array, jax.Array]:
    """The softmax [b, C, v] over all ids but `ids` [b, C, K], and the logarithm [b, C] of its sum of exponentials.

    Not by subtraction from that of all ids: where those within K have nearly all of the mass, nothing would be left.
    """
    masked = columns.put(logits, ids, jnp.full(ids.shape, -jnp.inf))
    top = columns.max(masked.max(-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)  # no other id: the softmax is 0 everywhere
    exponentials = jnp.exp(masked - top)
    norm = columns.sum(exponentials.sum(-1, keepdims=True))
    return exponentials / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny), (top + jnp.log(norm))[..., 0]
