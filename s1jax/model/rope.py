"""Rotary position embeddings: frequencies, scaled or not, and the rotation of queries and keys; all in float32.

The formulas of scaling are those of transformers 5 (`modeling_rope_utils.py`), which is what the published models were
checked with. Axis letters: B batch, T length, H head dimension, R its rotated dimensions.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config.layers import GQA, MLA
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling

Angles = tuple[jax.Array, jax.Array]  # cosines and sines, float32 [B, T, 1, R / 2] each


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Positions:
    """What layers know of the positions of their tokens.

    Attributes:
      angles: by kind of rope, `global` and `local`, of the kinds that the model has.
      growth: float32 [B, T, 1, 1], ln(1 + floor(p / original_context_length)) of position p; None: no layer has
        `position_scaling`.
    """

    angles: dict[str, Angles]
    growth: jax.Array | None = None

    def rotate(self, x: jax.Array, kind: str) -> jax.Array:
        """Rotates [B, T, heads, H]; `none` gives it back."""
        return x if kind == "none" else rotate(x, self.angles[kind])


def multipliers(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """What every rotary frequency is multiplied by.

    Args:
      head_dim: H, even.
      theta: base; frequency i is theta ** (-2 i / H).
      scaling: its kind says how. `linear`: 1 / factor. `llama3` (Llama 3.1): by wavelength. `yarn` (Peng et al. 2023,
        arXiv 2309.00071): by the number of rotations within the original context.

    Returns:
      float64 [H / 2], from 1 / factor to 1.
    """
    divided = np.full(head_dim // 2, 1 / scaling.factor)
    original = scaling.original_context_length
    if scaling.kind == "linear":
        return divided
    if scaling.kind == "llama3":
        wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
        return (1 - kept) * divided + kept

    def dimension(rotations: float) -> float:
        """The dimension that rotates so many times within the original context."""
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # as transformers does
    ramp = np.clip((np.arange(head_dim // 2) - first) / (last - first), 0, 1)
    return ramp * divided + (1 - ramp)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied by, which raises the logits of attention by its square."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    given = scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1 if given is None else given


def positions_of(positions: jax.Array, config: ModelConfig) -> Positions:
    """Cosines and sines of the rotation of every position (RoFormer, Su et al. 2021), and what else layers ask of it.

    Args:
      positions: int32 [B, T].
      config: of the model: the kinds of rope that its layers have, their bases and scaling.

    Returns:
      cosines and sines times the attention factor.
    """
    attentions = {layer.attention for group in config.groups for layer in group.pattern}
    kinds = {kind_of(attention): attention.rotated for attention in attentions}
    angles = {
        kind: _angles(
            positions,
            rotated,
            *((config.local_rope_theta, None) if kind == "local" else (config.rope_theta, config.rope_scaling)),
        )
        for kind, rotated in sorted(kinds.items())
        if kind != "none"
    }
    return Positions(angles)


def kind_of(attention: GQA | MLA) -> str:
    """Which rope a layer has: `global`, `local` or `none`."""
    return attention.rope if isinstance(attention, GQA) else "global"


def _angles(positions: jax.Array, rotated: int, theta: float, scaling: RopeScaling | None) -> Angles:
    """Of positions [B, T]; R is `rotated`."""
    frequencies = theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if scaling is not None:
        frequencies *= multipliers(rotated, theta, scaling).astype(np.float32)
    turned = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(turned), jnp.sin(turned)
    factor = attention_factor(scaling)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Rotates the first R dimensions of [B, T, heads, H]; i is paired with i + R / 2, as Hugging Face stores it."""
    cos, sin = angles
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :rotated], angles), x[..., rotated:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
