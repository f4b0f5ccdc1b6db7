"""What a layer's attention computes beyond the softmax mean: scale, window and softcap of its scores."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from s1jax.config.layers import GQA


@dataclasses.dataclass(frozen=True)
class AttentionRule:
    """Static settings of a kernel; equal rules share a compiled program.

    Attributes:
      scale: scores are multiplied by it.
      window: a query sees this many keys, its own included; 0: all earlier ones.
      softcap: scores s become softcap * tanh(s / softcap) before the mask; 0: they do not.
      value_dim: where no values are handed in, they are the first so many dimensions of the keys (`MLA` over the
        cache).
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    value_dim: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether scores are only scaled."""
        return not self.window and not self.softcap


def of(spec: GQA) -> AttentionRule:
    """The rule of a layer."""
    return AttentionRule(spec.scale, spec.window, spec.softcap)


def or_plain(rule: AttentionRule | None, head_dim: int) -> AttentionRule:
    """The rule; without one, scores are multiplied by H**-0.5."""
    return AttentionRule(head_dim**-0.5) if rule is None else rule


def capped(scores: jax.Array, softcap: float) -> jax.Array:
    """Scores after the cap; 0 is none."""
    return softcap * jnp.tanh(scores / softcap) if softcap else scores
