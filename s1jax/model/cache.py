"""Key/value cache of the decoder: one pair of arrays, stacked over layers, or one pair a layer for loops on a CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far; row b's token at position p lies in slot p.

    Attributes:
      keys: [L, B, K, S, H], rotated; or a tuple of L arrays [B, K, S, H], see `unstack`.
      values: as `keys`.
      lengths: int32 [B], tokens held for each row.
    """

    keys: Any
    values: Any
    lengths: jax.Array


def init_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens.

    The memory is 2 * L * B * K * length * H * itemsize bytes.
    """
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32))


def unstack(cache: Cache) -> Cache:
    """The same cache with one array a layer.

    XLA copies a layer's slice of a stacked cache before it multiplies with it; on a CPU that took 0.45 of 4.3 ms a
    layer at 16 rows of 256 slots (benchmarks/decode.py).
    """
    return Cache(tuple(cache.keys), tuple(cache.values), cache.lengths)


def append(cache: jax.Array, layer: jax.Array | None, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes one layer's new keys or values into consecutive slots of each row.

    Args:
      cache: [L, B, K, S, H], or [B, K, S, H] where `layer` is None.
      layer: int32 scalar, or None.
      new: [B, T, K, H].
      start: int32 [B], slot of each row's first new token.

    Returns:
      The updated cache; writes past the last slot are dropped.
    """
    batch, length = new.shape[:2]
    rows = jnp.arange(batch)[:, None]
    slots = start[:, None] + jnp.arange(length)[None, :]
    # Advanced indices apart from each other move to the front: the update is [B, T, K, H], as `new` is.
    place = (rows, slice(None), slots)
    return cache.at[place if layer is None else (layer, *place)].set(new.astype(cache.dtype), mode="drop")
