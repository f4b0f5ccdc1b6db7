"""Causal attention by einsums of XLA: the reference for the other kernels.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from s1jax.model.attention.chunked import MASKED
from s1jax.model.blocks import Part

_RUNS, _SHORTEST_RUN = 4, 128  # of queries


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, part: Part | None = None) -> jax.Array:
    """Causal attention within segments; materialises scores of [B, N, T / 4, S].

    The arguments and the result are those of `s1jax.model.attention.dispatch.attend`.
    """
    length = q.shape[1]
    places = jnp.arange(length) if part is None else part.own
    key_segment_ids = segment_ids if part is None else part.segment_ids
    causal = places[:, None] >= jnp.arange(k.shape[1])
    visible = causal & (segment_ids[:, :, None] == key_segment_ids[:, None, :])  # [B, T, S]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    # Whole rows are computed in runs of queries, each against the keys up to its end. That leaves out 3/8 of the
    # scores: a train step of benchmarks/train_step.py took 3.8 s instead of 4.1.
    run = length if part is not None else max(_SHORTEST_RUN, -(-length // _RUNS))
    means = []
    for start in range(0, length, run):
        here, end = slice(start, start + run), k.shape[2] if part is not None else start + run
        means.append(_softmax_mean(q[:, here], k[:, :, :end], v[:, :, :end], visible[:, here, :end]))
    return checkpoint_name(jnp.concatenate(means, axis=1), "attention")


def group_heads(q: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> scaled [B, K, T * G, H]: a group's queries are rows of one product with their shared keys."""
    batch, length, _, head_dim = q.shape
    grouped = (q * head_dim**-0.5).reshape(batch, length, kv_heads, -1, head_dim).swapaxes(1, 2)
    return grouped.reshape(batch, kv_heads, -1, head_dim)


def ungroup_heads(out: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, K, T * G, H] -> [B, T, N, H], the inverse of `group_heads`; `shape` is that of the result."""
    batch, length, _, head_dim = shape
    return out.reshape(batch, out.shape[1], length, -1, head_dim).swapaxes(1, 2).reshape(shape)


def _softmax_mean(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """q [B, T, N, H], k and v [B, K, S, H], visible bool [B, T, S] -> [B, T, N, H]."""
    batch, length = q.shape[:2]
    kv_heads = k.shape[1]
    scores = jnp.einsum("bkth,bksh->bkts", group_heads(q, kv_heads), k, preferred_element_type=jnp.float32)
    shape = scores.shape
    scores = scores.reshape(batch, kv_heads, length, -1, k.shape[2])
    scores = jnp.where(visible[:, None, :, None, :], scores, MASKED).reshape(shape)
    # The softmax has the shape of the product: otherwise the backward pass keeps one array for each shape.
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return ungroup_heads(jnp.einsum("bkts,bksh->bkth", weights, v), q.shape)
