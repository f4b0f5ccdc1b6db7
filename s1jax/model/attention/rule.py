"""What a layer's attention computes beyond the softmax mean: scale, window and softcap of its scores."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from s1jax.config.layers import GQA, MLA
from s1jax.config.model import ModelConfig


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


def of(spec: GQA) -> AttentionRule:
    """The rule of a layer."""
    return AttentionRule(spec.scale, spec.window, spec.softcap)


def needs(config: ModelConfig) -> frozenset[str]:
    """What the layers of a model ask of a kernel for whole rows: `windows`, `softcaps`, `sinks`, `narrow values`."""
    found: set[str] = set()
    for attention in {layer.attention for layer in config.layers()}:
        if isinstance(attention, MLA):
            found |= {"narrow values"} if attention.value_dim != attention.head_dim else set()
            continue
        asked = {"windows": attention.window, "softcaps": attention.softcap, "sinks": attention.sinks}
        found |= {name for name, value in asked.items() if value}
    return frozenset(found)


def or_plain(rule: AttentionRule | None, head_dim: int) -> AttentionRule:
    """The rule; without one, scores are multiplied by H**-0.5."""
    return AttentionRule(head_dim**-0.5) if rule is None else rule


def capped(scores: jax.Array, softcap: float) -> jax.Array:
    """Scores after the cap; 0 is none."""
    return softcap * jnp.tanh(scores / softcap) if softcap else scores
