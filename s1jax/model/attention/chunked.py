"""Causal attention in memory linear in the row length, on any backend: nothing of size [T, T], forward or backward.

Blocks of queries meet blocks of keys one pair at a time, with the running maximum and sum of the softmax (Rabe & Staats
2021; FlashAttention, Dao et al. 2022); pairs above the diagonal are left out. The backward pass computes the scores
again from the log-sum-exp of each row (FlashAttention-2, Dao 2023).

Axis letters: B batch, T query length, S key length, C block, K key/value heads, G query heads per key/value head,
H head dimension.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from s1jax.model import blocks

_Running = tuple[jax.Array, jax.Array, jax.Array]  # of a softmax: largest score, sum, unscaled mean
_Carry = tuple[_Running, jax.Array, jax.Array]  # and all outputs, all log-sum-exps
_Residuals = tuple[tuple[jax.Array, ...], jax.Array, jax.Array, jax.Array]
MASKED = -1e30  # finite, so that a row without any visible key gives a uniform mean and no NaN


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    order: jax.Array,
    block: int,
) -> jax.Array:
    """Attention within segments, as `s1jax.model.attention.dispatch.attend` defines it.

    Args:
      q: [B, T, K, G, H], scaled.
      k: [B, S, K, H].
      v: [B, S, K, H].
      q_segments: int32 [B, T].
      k_segments: int32 [B, S].
      order: int32 [T / C], the places of the blocks of queries among those of keys. Their sum must be that of
        0, 1, ... where T = S, and T / S of it otherwise: the number of pairs of blocks has to be known beforehand.
      block: C; scores of [B, K, G, C, C] exist at one time.

    Returns:
      [B, T, K, G, H] in the dtype of `q`; softmax and sums in float32. Under a remat policy that saves the name
      `attention`, it and the log-sum-exp are kept and the forward pass isn't run again.
    """
    return _forward(q, k, v, q_segments, k_segments, order, block)[0]


def _pairs(order: jax.Array, keys: int) -> tuple[jax.Array, jax.Array]:
    """Block of queries and block of keys of every pair: query block by query block, its keys from the first on."""
    total = len(order) * (keys + 1) // 2
    first = jnp.cumsum(order + 1) - (order + 1)
    i = jnp.repeat(jnp.arange(len(order)), order + 1, total_repeat_length=total)
    return i, jnp.arange(total) - first[i]


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    order: jax.Array,
    block: int,
) -> tuple[jax.Array, _Residuals]:
    length = q.shape[1]
    arrays = (q, k, v, q_segments, k_segments)
    qs, ks, vs, own, seen = (blocks.split(x, block) for x in arrays)
    shape = (q.shape[0], *q.shape[2:4], block)  # [B, K, G, C]
    fresh = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1])))

    def add(carry: _Carry, pair: tuple[jax.Array, jax.Array]) -> tuple[_Carry, None]:
        running, out, log_sum = carry
        i, j = pair
        top, total, mean = (jnp.where(j == 0, first, old) for first, old in zip(fresh, running, strict=True))
        scores = _scores(qs[i], ks[j], own[i], seen[j], order[i], j)
        higher = jnp.maximum(top, scores.max(-1))
        weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
        total = total * shrink + weights.sum(-1)
        product = jnp.einsum("bkgcd,bdkh->bkgch", weights.astype(q.dtype), vs[j], preferred_element_type=jnp.float32)
        mean = mean * shrink[..., None] + product
        # Written at every pair, right at the last one of a query block: a condition would cost more than the write.
        out = out.at[i].set((mean / total[..., None]).astype(q.dtype))
        return ((higher, total, mean), out, log_sum.at[i].set(higher + jnp.log(total))), None

    start = (fresh, jnp.zeros((len(qs), *shape, q.shape[-1]), q.dtype), jnp.zeros((len(qs), *shape)))
    (_, out, log_sum), _ = lax.scan(add, start, _pairs(order, len(ks)))
    out = checkpoint_name(blocks.join(jnp.moveaxis(out, 4, 2), length), "attention")
    log_sum = checkpoint_name(log_sum, "attention")
    return out, (arrays, order, out, log_sum)


def _backward(block: int, residuals: _Residuals, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    arrays, order, out, log_sum = residuals
    q, k, v = arrays[:3]
    qs, ks, vs, own, seen = (blocks.split(x, block) for x in arrays)
    d_outs = blocks.split(cotangent, block)
    delta = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)  # [B, T, K, G]
    deltas = jnp.moveaxis(blocks.split(delta, block), 2, 4)  # [T / C, B, K, G, C]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add(carry: tuple[jax.Array, ...], pair: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, ...], None]:
        d_qs, d_ks, d_vs = carry
        i, j = pair
        weights = jnp.exp(_scores(qs[i], ks[j], own[i], seen[j], order[i], j) - log_sum[i][..., None])
        d_v = einsum("bkgcd,bckgh->bdkh", weights.astype(q.dtype), d_outs[i])
        d_weights = einsum("bckgh,bdkh->bkgcd", d_outs[i], vs[j])
        d_scores = (weights * (d_weights - deltas[i][..., None])).astype(q.dtype)
        d_k = einsum("bkgcd,bckgh->bdkh", d_scores, qs[i])
        d_q = einsum("bkgcd,bdkh->bckgh", d_scores, ks[j])
        return (d_qs.at[i].add(d_q), d_ks.at[j].add(d_k), d_vs.at[j].add(d_v)), None

    start = tuple(jnp.zeros(x.shape) for x in (qs, ks, vs))
    gradients, _ = lax.scan(add, start, _pairs(order, len(ks)))
    d_q, d_k, d_v = (blocks.join(g, x.shape[1]).astype(q.dtype) for g, x in zip(gradients, (q, k, v), strict=True))
    return d_q, d_k, d_v, None, None, None


attend.defvjp(_forward, _backward)


def _scores(
    q: jax.Array, k: jax.Array, q_segments: jax.Array, k_segments: jax.Array, i: jax.Array, j: jax.Array
) -> jax.Array:
    """float32 [B, K, G, C, C] of the queries at block i and the keys at block j; `MASKED` where a key is not seen."""
    # Tied together, or `jax.checkpoint` takes the masks, which need no weights, for known and keeps those of all pairs.
    q, k, q_segments, k_segments, i, j = lax.optimization_barrier((q, k, q_segments, k_segments, i, j))
    scores = jnp.einsum("bckgh,bdkh->bkgcd", q, k, preferred_element_type=jnp.float32)
    place = jnp.arange(q.shape[1])
    earlier = i * q.shape[1] + place[:, None] >= j * q.shape[1] + place[None, :]
    visible = earlier & (q_segments[:, :, None] == k_segments[:, None, :])
    return jnp.where(visible[:, None, None], scores, MASKED)
