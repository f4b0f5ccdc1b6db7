"""Causal attention in memory linear in the row length, on any backend: nothing of size [T, T], forward or backward.

Blocks of queries meet blocks of keys one pair at a time, with the running maximum and sum of the softmax (Rabe & Staats
2021; FlashAttention, Dao et al. 2022); pairs above the diagonal and outside of the window are left out. The backward
pass computes the scores again from the log-sum-exp of each row (FlashAttention-2, Dao 2023).

Axis letters: B batch, T query length, S key length, C block, K key/value heads, G query heads per key/value head,
H head dimension of queries and keys, Hv that of values.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from s1jax.model import blocks
from s1jax.model.attention import rule as rule_lib

_Running = tuple[jax.Array, jax.Array, jax.Array]  # of a softmax: largest score, sum, unscaled mean
_Carry = tuple[_Running, jax.Array, jax.Array]  # and all outputs, all log-sum-exps
_Residuals = tuple[tuple[jax.Array, ...], jax.Array, jax.Array | None, jax.Array, jax.Array]
MASKED = -1e30  # finite, so that a row without any visible key gives a uniform mean and no NaN


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is known of the blocks beforehand.

    Attributes:
      block: C; scores of [B, K, G, C, C] exist at one time.
      pairs: of blocks that are computed, see `count_pairs`.
      window: as of `s1jax.model.attention.rule.AttentionRule`.
      softcap: as there.
    """

    block: int
    pairs: int
    window: int = 0
    softcap: float = 0.0

    @property
    def earlier(self) -> int | None:
        """How many blocks before their own the queries of a block see; None: all."""
        return _earlier(self.block, self.window)


def count_pairs(order: np.ndarray, block: int, window: int) -> int:
    """How many pairs of blocks are computed.

    Args:
      order: int [devices, T / C], the places of each device's blocks of queries among those of keys.
      block: C.
      window: as of `Shape`.

    Returns:
      the number of the device that has most; the others compute a few pairs that are masked whole.
    """
    earlier = _earlier(block, window)
    seen = order if earlier is None else np.minimum(order, earlier)
    return int((seen + 1).sum(axis=1).max())


def _earlier(block: int, window: int) -> int | None:
    return -(-(window - 1) // block) if window else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    order: jax.Array,
    sinks: jax.Array | None,
    shape: Shape,
) -> jax.Array:
    """Attention within segments, as `s1jax.model.attention.dispatch.attend` defines it.

    Args:
      q: [B, T, K, G, H], scaled.
      k: [B, S, K, H].
      v: [B, S, K, Hv].
      q_segments: int32 [B, T].
      k_segments: int32 [B, S].
      order: int32 [T / C], the places of the blocks of queries among those of keys.
      sinks: float32 [K, G], see `s1jax.model.attention.dispatch.attend`.
      shape: of the blocks.

    Returns:
      [B, T, K, G, Hv] in the dtype of `q`; softmax and sums in float32. Under a remat policy that saves the name
      `attention`, it and the log-sum-exp are kept and the forward pass isn't run again.
    """
    return _forward(q, k, v, q_segments, k_segments, order, sinks, shape)[0]


def _pairs(order: jax.Array, shape: Shape) -> tuple[jax.Array, jax.Array]:
    """Block of queries and block of keys of every pair: query block by query block, its keys from the first on."""
    counts = order + 1 if shape.earlier is None else jnp.minimum(order, shape.earlier) + 1
    start = jnp.cumsum(counts) - counts
    i = jnp.repeat(jnp.arange(len(order)), counts, total_repeat_length=shape.pairs)
    j = jnp.arange(shape.pairs) - start[i]
    return i, j + _first(order[i], shape)


def _first(order: jax.Array, shape: Shape) -> jax.Array | int:
    """The first block of keys that queries at block `order` see."""
    return 0 if shape.earlier is None else jnp.maximum(order - shape.earlier, 0)


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    order: jax.Array,
    sinks: jax.Array | None,
    shape: Shape,
) -> tuple[jax.Array, _Residuals]:
    length = q.shape[1]
    arrays = (q, k, v, q_segments, k_segments)
    qs, ks, vs, own, seen = (blocks.split(x, shape.block) for x in arrays)
    rows = (q.shape[0], *q.shape[2:4], shape.block)  # [B, K, G, C]
    if sinks is None:
        fresh = (jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros((*rows, v.shape[-1])))
    else:  # a key that has been met, whose value is 0
        fresh = (jnp.broadcast_to(sinks[..., None], rows), jnp.ones(rows), jnp.zeros((*rows, v.shape[-1])))

    def add(carry: _Carry, pair: tuple[jax.Array, jax.Array]) -> tuple[_Carry, None]:
        running, out, log_sum = carry
        i, j = pair
        begins = j == _first(order[i], shape)
        top, total, mean = (jnp.where(begins, first, old) for first, old in zip(fresh, running, strict=True))
        scores = _scores(qs[i], ks[j], own[i], seen[j], order[i], j, shape)
        higher = jnp.maximum(top, scores.max(-1))
        weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
        total = total * shrink + weights.sum(-1)
        product = jnp.einsum("bkgcd,bdkh->bkgch", weights.astype(q.dtype), vs[j], preferred_element_type=jnp.float32)
        mean = mean * shrink[..., None] + product
        # Written at every pair, right at the last one of a query block: a condition would cost more than the write.
        out = out.at[i].set((mean / total[..., None]).astype(q.dtype))
        return ((higher, total, mean), out, log_sum.at[i].set(higher + jnp.log(total))), None

    start = (fresh, jnp.zeros((len(qs), *rows, v.shape[-1]), q.dtype), jnp.zeros((len(qs), *rows)))
    (_, out, log_sum), _ = lax.scan(add, start, _pairs(order, shape))
    out = checkpoint_name(blocks.join(jnp.moveaxis(out, 4, 2), length), "attention")
    log_sum = checkpoint_name(log_sum, "attention")
    return out, (arrays, order, sinks, out, log_sum)


def _backward(shape: Shape, residuals: _Residuals, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    arrays, order, sinks, out, log_sum = residuals
    q, k, v = arrays[:3]
    qs, ks, vs, own, seen = (blocks.split(x, shape.block) for x in arrays)
    d_outs = blocks.split(cotangent, shape.block)
    delta = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)  # [B, T, K, G]
    deltas = jnp.moveaxis(blocks.split(delta, shape.block), 2, 4)  # [T / C, B, K, G, C]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add(carry: tuple[jax.Array, ...], pair: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, ...], None]:
        d_qs, d_ks, d_vs = carry
        i, j = pair
        scores = _scores(qs[i], ks[j], own[i], seen[j], order[i], j, shape)
        weights = jnp.exp(scores - log_sum[i][..., None])
        d_v = einsum("bkgcd,bckgh->bdkh", weights.astype(q.dtype), d_outs[i])
        d_weights = einsum("bckgh,bdkh->bkgcd", d_outs[i], vs[j])
        d_scores = weights * (d_weights - deltas[i][..., None])
        if shape.softcap:  # of a masked score, any: its weight is 0
            d_scores *= 1 - jnp.square(jnp.clip(scores / shape.softcap, -1, 1))
        d_scores = d_scores.astype(q.dtype)
        d_k = einsum("bkgcd,bckgh->bdkh", d_scores, qs[i])
        d_q = einsum("bkgcd,bdkh->bckgh", d_scores, ks[j])
        return (d_qs.at[i].add(d_q), d_ks.at[j].add(d_k), d_vs.at[j].add(d_v)), None

    start = tuple(jnp.zeros(x.shape) for x in (qs, ks, vs))
    gradients, _ = lax.scan(add, start, _pairs(order, shape))
    d_q, d_k, d_v = (blocks.join(g, x.shape[1]).astype(q.dtype) for g, x in zip(gradients, (q, k, v), strict=True))
    d_sinks = None if sinks is None else -jnp.sum(jnp.exp(sinks[..., None] - log_sum) * deltas, axis=(0, 1, 4))
    return d_q, d_k, d_v, None, None, None, d_sinks


attend.defvjp(_forward, _backward)


def _scores(
    q: jax.Array,
    k: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    i: jax.Array,
    j: jax.Array,
    shape: Shape,
) -> jax.Array:
    """float32 [B, K, G, C, C] of the queries at block i and the keys at block j; `MASKED` where a key is not seen."""
    # Tied together, or `jax.checkpoint` takes the masks, which need no weights, for known and keeps those of all pairs.
    q, k, q_segments, k_segments, i, j = lax.optimization_barrier((q, k, q_segments, k_segments, i, j))
    scores = jnp.einsum("bckgh,bdkh->bkgcd", q, k, preferred_element_type=jnp.float32)
    scores = rule_lib.capped(scores, shape.softcap)
    place = jnp.arange(q.shape[1])
    queries, keys = i * q.shape[1] + place[:, None], j * q.shape[1] + place[None, :]
    earlier = queries >= keys
    if shape.window:
        earlier &= queries - shape.window < keys
    visible = earlier & (q_segments[:, :, None] == k_segments[:, None, :])
    return jnp.where(visible[:, None, None], scores, MASKED)
