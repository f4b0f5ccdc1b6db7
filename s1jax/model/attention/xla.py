"""Causal attention by einsums of XLA: the reference for the other kernels.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.chunked import MASKED
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.blocks import Part

_RUNS, _SHORTEST_RUN = 4, 128  # of queries


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    part: Part | None = None,
    *,
    rule: AttentionRule | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Causal attention within segments; materialises scores of [B, N, T / 4, S].

    The arguments and the result are those of `s1jax.model.attention.dispatch.attend`.
    """
    rule, length = rule_lib.or_plain(rule, q.shape[-1]), q.shape[1]
    places = jnp.arange(length) if part is None else part.own
    key_segment_ids = segment_ids if part is None else part.segment_ids
    causal = places[:, None] >= jnp.arange(k.shape[1])
    if rule.window:
        causal &= places[:, None] - rule.window < jnp.arange(k.shape[1])
    visible = causal & (segment_ids[:, :, None] == key_segment_ids[:, None, :])  # [B, T, S]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    # Whole rows are computed in runs of queries, each against the keys up to its end. That leaves out 3/8 of the
    # scores: a train step of benchmarks/train_step.py took 3.8 s instead of 4.1.
    run = length if part is not None else max(_SHORTEST_RUN, -(-length // _RUNS))
    means = []
    for start in range(0, length, run):
        here, keys = slice(start, start + run), slice(0, k.shape[2] if part is not None else start + run)
        if rule.window and part is None:
            keys = slice(max(0, start - rule.window + 1), keys.stop)
        means.append(_softmax_mean(q[:, here], k[:, :, keys], v[:, :, keys], visible[:, here, keys], rule, sinks))
    return checkpoint_name(jnp.concatenate(means, axis=1), "attention")


def group_heads(q: jax.Array, kv_heads: int, scale: float) -> jax.Array:
    """[B, T, N, H] -> scaled [B, K, T * G, H]: a group's queries are rows of one product with their shared keys."""
    batch, length, _, head_dim = q.shape
    grouped = (q * scale).reshape(batch, length, kv_heads, -1, head_dim).swapaxes(1, 2)
    return grouped.reshape(batch, kv_heads, -1, head_dim)


def ungroup_heads(out: jax.Array, heads: int) -> jax.Array:
    """[B, K, T * G, H] -> [B, T, N, H] for N = `heads`, the inverse of `group_heads`."""
    batch, kv_heads, rows, size = out.shape
    length = rows * kv_heads // heads
    grouped = out.reshape(batch, kv_heads, length, -1, size).swapaxes(1, 2)
    return grouped.reshape(batch, length, heads, size)


def group_sinks(sinks: jax.Array, kv_heads: int, length: int) -> jax.Array:
    """[N] -> float32 [K, T * G], one for each row of `group_heads`."""
    each = sinks.astype(jnp.float32).reshape(kv_heads, 1, -1)
    return jnp.broadcast_to(each, (kv_heads, length, each.shape[-1])).reshape(kv_heads, -1)


def _softmax_mean(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, rule: AttentionRule, sinks: jax.Array | None
) -> jax.Array:
    """q [B, T, N, H], k [B, K, S, H], v [B, K, S, Hv], visible bool [B, T, S] -> [B, T, N, Hv]."""
    batch, length, heads = q.shape[:3]
    kv_heads = k.shape[1]
    grouped = group_heads(q, kv_heads, rule.scale)
    scores = jnp.einsum("bkth,bksh->bkts", grouped, k, preferred_element_type=jnp.float32)
    scores = rule_lib.capped(scores, rule.softcap)
    shape = scores.shape
    scores = scores.reshape(batch, kv_heads, length, -1, k.shape[2])
    scores = jnp.where(visible[:, None, :, None, :], scores, MASKED).reshape(shape)
    # The softmax has the shape of the product: otherwise the backward pass keeps one array for each shape.
    weights = jax.nn.softmax(scores, axis=-1)
    if sinks is not None:  # the share of the softmax that the sink leaves to the keys
        log_sum = jax.nn.logsumexp(scores, axis=-1)
        weights *= jax.nn.sigmoid(log_sum - group_sinks(sinks, kv_heads, length))[..., None]
    return ungroup_heads(jnp.einsum("bkts,bksh->bkth", weights.astype(q.dtype), v), heads)
