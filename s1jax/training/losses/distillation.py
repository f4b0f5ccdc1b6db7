"""Losses between the distributions of a student and a teacher over the next token, mixed with cross-entropy.

s and t are the student's and the teacher's softmax of a token's logits, both divided by the temperature r, over the ids
that the tokenizer has: columns without an id have no mass on either side. KL(p, q) = sum p log(p / q), and the gradient
is the one with respect to the student's logits z, times r ** 2 as in Hinton et al. 2015 (1503.02531), so that r changes
the size of the gradients little. "Project a" is s * (a - sum s a), the gradient of sum s a if a were constant.

    forward_kl          KL(t, s)                                        s - t
    reverse_kl          KL(s, t)                                        project log(s / t)
    jsd                 (b KL(t, m) + (1 - b) KL(s, m)) / (b (1 - b))   project log(s / m) / b
                        with m = b t + (1 - b) s
    skewed_kl           KL(t, m) with m = a t + (1 - a) s               project -(1 - a) t / m
    skewed_reverse_kl   KL(s, m) with m = (1 - a) t + a s               project log(s / m) - a s / m

Sources: the generalised Jensen-Shannon divergence of GKD (2306.13649), with `beta` as there; the skewed divergences of
DistiLLM (2402.03898), with `alpha` as there. GKD's own value is not divided by b (1 - b): towards b = 0 and 1 it goes
to 0, and then jumps to the forward and the reverse KL, which implementations put there. Divided, it goes to KL(t, s)
for b -> 0 and to KL(s, t) for b -> 1. At b = 0.5 it is four times GKD's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from s1jax.config.experiment import DistilConfig
from s1jax.training.losses import chunks, cross_entropy


def batch_loss(
    config: DistilConfig,
    legal: np.ndarray | None,
    hidden: jax.Array,
    kernel: jax.Array,
    batch: Mapping[str, jax.Array],
    chunk: int,
    mesh: Mesh | None,
    teacher: chunks.Head | None,
    softcap: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch, with its parts `cross_entropy` and `distillation`: a `step.Loss` but for two arguments.

    Args:
      config: which loss.
      legal: bool [V], the ids that student and teacher have; None: all.
      hidden: [B, T, D], of the student.
      kernel: [D, V], of the student.
      batch: with `targets` and `weights` [B, T].
      chunk: see `chunks.weighted_sum`.
      mesh: see `chunks.weighted_sum`.
      teacher: its hidden states [B, T, D'] and kernel [D', V].
      softcap: of the student's logits, see `chunks.Head`.

    Returns:
      float32 scalars: (1 - weight) * cross_entropy + weight * distillation, and both by name; each is the sum of
      weights * (loss of a token).
    """
    tokens = {"targets": batch["targets"]}
    rule = Mixed(config)
    return chunks.weighted_sum(hidden, kernel, batch["weights"], tokens, teacher, legal, rule, chunk, mesh, softcap)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A divergence mixed with cross-entropy, as a `chunks.Rule`; the latter is over all columns, as in training."""

    config: DistilConfig

    def __call__(
        self,
        logits: jax.Array,
        teacher: jax.Array | None,
        tokens: Mapping[str, jax.Array],
        columns: chunks.Columns,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        assert teacher is not None
        value, gradient = divergence(self.config, logits, teacher, columns)
        return cross_entropy.mixed(self.config.weight, value, gradient, logits, tokens, columns)


def divergence(
    config: DistilConfig, logits: jax.Array, teacher: jax.Array, columns: chunks.Columns
) -> tuple[jax.Array, jax.Array]:
    """Returns the value [b, C] and the gradient [b, C, v] of each token's loss, see the top of this file."""
    (log_s, s), (log_t, t) = log_softmax((logits, teacher), config.temperature, columns)
    name, b, a = config.loss, config.beta, config.alpha
    if name == "jsd" and b in (0, 1):  # its limits
        name = "reverse_kl" if b else "forward_kl"
    # `of_value` adds up to the value, `of_gradient` is s * a.
    if name == "forward_kl":
        of_value = t * (log_t - log_s)
        of_gradient = -t
    elif name == "reverse_kl":
        of_value = of_gradient = s * (log_s - log_t)
    elif name == "jsd":
        from_s, from_t = -_log_mix(log_t - log_s, b), -_log_mix(log_s - log_t, 1 - b)  # log(s / m), log(t / m)
        of_value = t * from_t / (1 - b) + s * from_s / b
        of_gradient = s * from_s / b
    elif name == "skewed_kl":
        from_s, from_t = -_log_mix(log_t - log_s, a), -_log_mix(log_s - log_t, 1 - a)
        of_value = t * from_t
        of_gradient = -(1 - a) * t * jnp.exp(from_s)  # s / m is at most 1 / (1 - a)
    else:
        from_s = -_log_mix(log_t - log_s, 1 - a)
        of_value = s * from_s
        of_gradient = s * (from_s - a * jnp.exp(from_s))
    value, mean = columns.sum((of_value.sum(-1), of_gradient.sum(-1, keepdims=True)))
    return config.temperature**2 * value, config.temperature * (of_gradient - s * mean)


def log_softmax(
    logits: tuple[jax.Array, ...], temperature: float, columns: chunks.Columns
) -> list[tuple[jax.Array, jax.Array]]:
    """Log-softmax and softmax [b, C, v] of several logits, over the legal columns of all devices; 0 both elsewhere."""
    legal = columns.ids >= 0 if columns.legal is None else columns.legal
    scaled = [jnp.where(legal, x / temperature, -jnp.inf) for x in logits]
    tops = columns.max([x.max(-1, keepdims=True) for x in scaled])
    scaled = [x - top for x, top in zip(scaled, tops, strict=True)]
    norms = columns.sum([jnp.exp(x).sum(-1, keepdims=True) for x in scaled])
    return [(jnp.where(legal, x - jnp.log(n), 0.0), jnp.exp(x) / n) for x, n in zip(scaled, norms, strict=True)]


def _log_mix(x: jax.Array, share: float) -> jax.Array:
    """log((1 - share) + share * exp(x)), to the last digits for a share near 0 or 1 and for x of any size."""
    if share <= 0.5:
        return jnp.where(x < 60, jnp.log1p(share * jnp.expm1(jnp.minimum(x, 60))), x + math.log(share))
    near = x + jnp.log1p((1 - share) * jnp.expm1(jnp.minimum(-x, 1)))
    return jnp.where(x < -1, jnp.log((1 - share) + share * jnp.exp(jnp.minimum(x, 0))), near)
