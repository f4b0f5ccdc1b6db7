"""Causal attention in memory linear in the row length, on any backend: nothing of size [T, T], forward or backward.

Blocks of queries meet blocks of keys one at a time, with the running maximum and sum of the softmax (Rabe & Staats
2021; FlashAttention, Dao et al. 2022); blocks above the diagonal are never computed. The backward pass computes the
scores again from the log-sum-exp of each row (FlashAttention-2, Dao 2023).

Axis letters: B batch, T length, C block, K key/value heads, G query heads per key/value head, H head dimension.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

_MASKED = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, block: int) -> jax.Array:
    """Attention within segments, as `s1jax.model.attention.attend` defines it.

    Args:
      q: [B, T, K, G, H], scaled.
      k: [B, T, K, H].
      v: [B, T, K, H].
      segment_ids: int32 [B, T].
      block: C; scores of [B, K, G, C, C] exist at one time.

    Returns:
      [B, T, K, G, H] in the dtype of `q`; softmax and sums in float32. Under a remat policy that saves the name
      `attention`, it and the log-sum-exp are kept and the forward pass isn't run again.
    """
    return _forward(q, k, v, segment_ids, block)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, block: int) -> tuple[jax.Array, Any]:
    length = q.shape[1]
    qs, ks, vs, segments = _blocks(q, block), _blocks(k, block), _blocks(v, block), _blocks(segment_ids, block)

    def row(_: None, i: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        queries = qs[i]

        def add(j: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            top, total, mean = carry
            scores = _scores(queries, ks[j], segments[i], segments[j], i, j)
            higher = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - higher[..., None])
            shrink = jnp.exp(top - higher)
            product = jnp.einsum(
                "bkgcd,bdkh->bkgch", weights.astype(q.dtype), vs[j], preferred_element_type=jnp.float32
            )
            return higher, total * shrink + weights.sum(-1), mean * shrink[..., None] + product

        shape = (q.shape[0], *q.shape[2:4], block)
        start = (jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1])))
        top, total, mean = lax.fori_loop(0, i + 1, add, start)
        return None, ((mean / total[..., None]).astype(q.dtype), top + jnp.log(total))

    _, (out, log_sum) = lax.scan(row, None, jnp.arange(len(qs)))  # [T / C, B, K, G, C, H], [T / C, B, K, G, C]
    out = checkpoint_name(_whole(jnp.moveaxis(out, 4, 2), length), "attention")
    log_sum = checkpoint_name(log_sum, "attention")
    return out, (q, k, v, segment_ids, out, log_sum)


def _backward(block: int, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segment_ids, out, log_sum = residuals
    qs, ks, vs, segments = _blocks(q, block), _blocks(k, block), _blocks(v, block), _blocks(segment_ids, block)
    d_outs = _blocks(cotangent, block)
    delta = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)  # [B, T, K, G]
    deltas = jnp.moveaxis(_blocks(delta, block), 2, 4)  # [T / C, B, K, G, C]

    def column(d_qs: jax.Array, j: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        def add(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            d_qs, d_k, d_v = carry
            wide: dict[str, Any] = {"preferred_element_type": jnp.float32}
            weights = jnp.exp(_scores(qs[i], ks[j], segments[i], segments[j], i, j) - log_sum[i][..., None])
            d_v += jnp.einsum("bkgcd,bckgh->bdkh", weights.astype(q.dtype), d_outs[i], **wide)
            d_weights = jnp.einsum("bckgh,bdkh->bkgcd", d_outs[i], vs[j], **wide)
            d_scores = (weights * (d_weights - deltas[i][..., None])).astype(q.dtype)
            d_k += jnp.einsum("bkgcd,bckgh->bdkh", d_scores, qs[i], **wide)
            d_q = jnp.einsum("bkgcd,bdkh->bckgh", d_scores, ks[j], **wide)
            return d_qs.at[i].add(d_q), d_k, d_v

        zeros = jnp.zeros(ks.shape[1:])
        d_qs, d_k, d_v = lax.fori_loop(j, len(qs), add, (d_qs, zeros, zeros))
        return d_qs, (d_k.astype(k.dtype), d_v.astype(v.dtype))

    d_qs, (d_ks, d_vs) = lax.scan(column, jnp.zeros(qs.shape), jnp.arange(len(qs)))
    length = q.shape[1]
    return _whole(d_qs, length).astype(q.dtype), _whole(d_ks, length), _whole(d_vs, length), None


attend.defvjp(_forward, _backward)


def _scores(
    q: jax.Array, k: jax.Array, q_segments: jax.Array, k_segments: jax.Array, i: jax.Array, j: jax.Array
) -> jax.Array:
    """float32 [B, K, G, C, C] of query block i and key block j; `_MASKED` where a key is not seen."""
    scores = jnp.einsum("bckgh,bdkh->bkgcd", q, k, preferred_element_type=jnp.float32)
    place = jnp.arange(q.shape[1])
    earlier = i * q.shape[1] + place[:, None] >= j * q.shape[1] + place[None, :]
    visible = earlier & (q_segments[:, :, None] == k_segments[:, None, :])
    return jnp.where(visible[:, None, None], scores, _MASKED)


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [ceil(T / C), B, C, ...], filled up with zeros."""
    count = -(-x.shape[1] // block)
    x = jnp.pad(x, [(0, 0), (0, count * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)


def _whole(blocks: jax.Array, length: int) -> jax.Array:
    """The inverse of `_blocks`: [T / C, B, C, ...] -> [B, T, ...]."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
