"""Key/value cache of the decoder: one pair of arrays, stacked over layers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far; row b's token at position p lies in slot p.

    Attributes:
      keys: [L, B, K, S, H], rotated.
      values: [L, B, K, S, H].
      lengths: int32 [B], tokens held for each row.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array


def init_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens.

    The memory is 2 * L * B * K * length * H * itemsize bytes.
    """
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32))


def append(cache: jax.Array, layer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes one layer's new keys or values into consecutive slots of each row.

    Args:
      cache: [L, B, K, S, H].
      layer: int32 scalar.
      new: [B, T, K, H].
      start: int32 [B], slot of each row's first new token.

    Returns:
      The updated [L, B, K, S, H]; writes past the last slot are dropped.
    """
    batch, length = new.shape[:2]
    rows = jnp.arange(batch)[:, None]
    slots = start[:, None] + jnp.arange(length)[None, :]
    # Advanced indices apart from each other move to the front: the update is [B, T, K, H], as `new` is.
    return cache.at[layer, rows, :, slots].set(new.astype(cache.dtype), mode="drop")
