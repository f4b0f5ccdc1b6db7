"""Rotary position embeddings: frequencies, scaled or not, and the rotation of queries and keys; all in float32.

The formulas of scaling are those of transformers 5 (`modeling_rope_utils.py`), which is what the published models were
checked with. Axis letters: B batch, T length, H head dimension, R its rotated dimensions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

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
      score_factor: what scores of `MLA` are multiplied by besides, see `mscale_all_dim` of `RopeScaling`.
    """

    angles: dict[str, Angles]
    growth: jax.Array | None = None
    score_factor: float = dataclasses.field(default=1.0, metadata={"static": True})

    def rotate(self, x: jax.Array, kind: str) -> jax.Array:
        """Rotates [B, T, heads, H]; `none` gives it back."""
        return x if kind == "none" else rotate(x, self.angles[kind])


def multipliers(head_dim: int, theta: float, scaling: RopeScaling, is_long: bool = False) -> np.ndarray:
    """What every rotary frequency is multiplied by.

    Args:
      head_dim: R, even.
      theta: base; frequency i is theta ** (-2 i / R).
      scaling: its kind says how. `linear`: 1 / factor. `llama3` (Llama 3.1): by wavelength. `yarn` (Peng et al. 2023,
        arXiv 2309.00071): by the number of rotations within the original context. `longrope`: by its lists.
      is_long: of sequences longer than the original context; `longrope` alone has others for them.

    Returns:
      float64 [R / 2], all kinds but `longrope` from 1 / factor to 1.
    """
    if scaling.kind == "longrope":
        return 1 / np.asarray(scaling.long_factor if is_long else scaling.short_factor)
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
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "longrope":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context_length))
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor)


def score_factor(scaling: RopeScaling | None) -> float:
    """What `MLA` multiplies its scores by besides."""
    if scaling is None or scaling.kind != "yarn" or not scaling.mscale_all_dim:
        return 1.0
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1


def positions_of(positions: jax.Array, config: ModelConfig, lengths: Callable[[], jax.Array]) -> Positions:
    """Cosines and sines of the rotation of every position (RoFormer, Su et al. 2021), and what else layers ask of it.

    Args:
      positions: int32 [B, T].
      config: of the model: the kinds of rope that its layers have, their bases and scaling.
      lengths: gives int32 [B, T] or [B, 1], how long the sequence of each token is or will be; `longrope` divides
        the frequencies of longer ones than its original context by other factors. Called only if they matter.

    Returns:
      cosines and sines times the attention factor.
    """
    attentions = {layer.attention for group in config.groups for layer in group.pattern}
    angles = {}
    for kind, rotated in sorted({(kind_of(attention), attention.rotated) for attention in attentions}):
        if kind == "local":
            angles[kind] = _angles(positions, _frequencies(rotated, config.local_rope_theta, None))
        elif kind == "global":
            angles[kind] = _scaled_angles(positions, rotated, config, lengths)
    if not any(isinstance(attention, GQA) and attention.position_scaling for attention in attentions):
        return Positions(angles, score_factor=score_factor(config.rope_scaling))
    assert config.rope_scaling is not None
    grown = jnp.log1p(jnp.floor(positions / config.rope_scaling.original_context_length))
    return Positions(angles, grown[:, :, None, None])


def kind_of(attention: GQA | MLA) -> str:
    """Which rope a layer has: `global`, `local` or `none`."""
    return attention.rope if isinstance(attention, GQA) else "global"


def _scaled_angles(positions: jax.Array, rotated: int, config: ModelConfig, lengths: Callable[[], jax.Array]) -> Angles:
    """Of positions [B, T], by the model's base and scaling; R is `rotated`."""
    scaling = config.rope_scaling
    frequencies = _frequencies(rotated, config.rope_theta, scaling)
    if scaling is not None and config.rope_depends_on_length:
        long = _frequencies(rotated, config.rope_theta, scaling, is_long=True)
        is_long = lengths() > scaling.original_context_length
        frequencies = jnp.where(is_long[:, :, None, None], long, frequencies)
    cos, sin = _angles(positions, frequencies)
    factor = attention_factor(scaling)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def _frequencies(rotated: int, theta: float, scaling: RopeScaling | None, is_long: bool = False) -> jax.Array:
    """float32 [R / 2]."""
    frequencies = theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if scaling is not None:
        frequencies *= multipliers(rotated, theta, scaling, is_long).astype(np.float32)
    return frequencies


def _angles(positions: jax.Array, frequencies: jax.Array) -> Angles:
    turned = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Rotates the first R dimensions of [B, T, heads, H]; i is paired with i + R / 2, as Hugging Face stores it."""
    cos, sin = angles
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :rotated], angles), x[..., rotated:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
