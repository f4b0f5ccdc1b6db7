"""Attention: one entry point for training over whole rows, one for a step against the cache.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from s1jax.model import chunked

_BLOCK = 512


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, implementation: str) -> jax.Array:
    """Causal attention within segments.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H]; query head n uses key head n // G.
      v: [B, T, K, H].
      segment_ids: int32 [B, T]; a token sees earlier tokens of its own segment and itself.
      implementation: `xla`, einsums that materialise [B, N, T, T] scores; `chunked`, memory linear in T on any
        backend (`s1jax.model.chunked`).

    Returns:
      [B, T, N, H] in the dtype of `q`; softmax in float32.

    Raises:
      ValueError: for an unknown implementation.
    """
    batch, length, _, head_dim = q.shape
    if implementation == "chunked":
        grouped = (q * head_dim**-0.5).reshape(batch, length, k.shape[2], -1, head_dim)
        return chunked.attend(grouped, k, v, segment_ids, min(_BLOCK, length)).reshape(q.shape)
    if implementation != "xla":
        raise ValueError(f"attention implementation {implementation!r} is unknown; use 'xla' or 'chunked'")
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal & (segment_ids[:, :, None] == segment_ids[:, None, :])  # [B, T, S]
    return checkpoint_name(_softmax_mean(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible), "attention")


def attend_cached(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """Attention of new tokens over one layer of the cache, which already holds them.

    Args:
      q: [B, T, N, H].
      keys: [B, K, S, H], one layer of `s1jax.model.cache.Cache`.
      values: [B, K, S, H].
      positions: int32 [B, T], slots of the queries; each sees slots 0..position.

    Returns:
      [B, T, N, H] in the dtype of `q`.
    """
    visible = jnp.arange(keys.shape[2])[None, None, :] <= positions[:, :, None]  # [B, T, S]
    return _softmax_mean(q, keys.astype(q.dtype), values.astype(q.dtype), visible)


def _softmax_mean(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """q [B, T, N, H], k and v [B, K, S, H], visible bool [B, T, S] -> [B, T, N, H]."""
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    # [B, K, T * G, H]: the queries of a group are rows of one matrix product with their common keys.
    grouped = (q * head_dim**-0.5).reshape(batch, length, kv_heads, -1, head_dim).swapaxes(1, 2)
    grouped = grouped.reshape(batch, kv_heads, -1, head_dim)
    scores = jnp.einsum("bkth,bksh->bkts", grouped, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, length, -1, k.shape[2])
    scores = jnp.where(visible[:, None, :, None, :], scores, chunked.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(batch, kv_heads, -1, k.shape[2])
    out = jnp.einsum("bkts,bksh->bkth", weights, v)
    return out.reshape(batch, kv_heads, length, -1, head_dim).swapaxes(1, 2).reshape(batch, length, heads, head_dim)
