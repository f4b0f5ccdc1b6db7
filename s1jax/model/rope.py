"""Rotary position embeddings: frequencies, scaled or not, and the rotation of queries and keys; all in float32.

The formulas of scaling are those of transformers 5 (`modeling_rope_utils.py`), which is what the published models were
checked with. Axis letters: B batch, T length, H head dimension.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling

Angles = tuple[jax.Array, jax.Array]  # cosines and sines, float32 [B, T, 1, H / 2] each


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


def angles(positions: jax.Array, config: ModelConfig) -> Angles:
    """Cosines and sines of the rotation of every position (RoFormer, Su et al. 2021).

    Args:
      positions: int32 [B, T].
      config: of the model: its head dimension, base and scaling.

    Returns:
      Two float32 arrays [B, T, 1, H / 2], both times the attention factor.
    """
    head_dim, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequencies *= multipliers(head_dim, theta, scaling).astype(np.float32)
    turned = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(turned), jnp.sin(turned)
    factor = attention_factor(scaling)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Rotates [B, T, heads, H] by `angles`; dimension i is paired with i + H / 2, as Hugging Face stores it."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
