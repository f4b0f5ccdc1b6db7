"""RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: bool = False) -> jax.Array:
    """Root-mean-square normalisation over the last axis (Zhang & Sennrich 2019); statistics in float32.

    Args:
      x: [..., D].
      scale: [D].
      eps: added to the mean square.
      offset: multiplies by 1 + scale, in float32 (Gemma); otherwise what is multiplied has the dtype of `x` already, as
        in Llama.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    if offset:
        return (wide * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return scale.astype(x.dtype) * wide.astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with its learned scale, which begins as the identity."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike, offset: bool = False):
        self.scale = nnx.Param(jnp.zeros((size,), dtype) if offset else jnp.ones((size,), dtype))
        self.size, self.eps, self.offset = size, eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> [..., size] in the dtype of `x`."""
        return rms_norm(x, self.scale[...], self.eps, self.offset)
