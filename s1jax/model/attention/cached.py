"""Attention of new tokens over the paged KV cache: prefill and decode steps on any backend.

Axis letters: B batch, T query length, N query heads, K key/value heads, G = N / K, H head dimension, P tokens of a
page, I pages at once, Hv head dimension of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from s1jax.model import cache as cache_lib
from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.chunked import MASKED
from s1jax.model.attention.fused import LANES
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.attention.xla import group_heads, group_sinks, ungroup_heads

# (q, k, v, pages, layer, new, *, rule, sinks) of `attend_cached`, or of `s1jax.parallel.ops.attend_cached` on a mesh.
AttendCached = Callable[..., tuple[jax.Array, cache_lib.Pages]]


def attend_cached(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array | None,
    pages: cache_lib.Pages,
    layer: jax.Array | int | None,
    new: cache_lib.NewTokens,
    *,
    pages_at_once: int = 1,
    pages_in_place: bool = False,
    rule: AttentionRule | None = None,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, cache_lib.Pages]:
    """Appends new tokens to one layer of the cache and attends to all tokens that their sequences hold.

    A loop reads `pages_at_once` pages of every sequence at a time and stops after the longest sequence. That bounds the
    memory for scores, and batch slots that nobody uses cost nothing.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, Hv]; None: the first `rule.value_dim` dimensions of the keys, which the cache then holds alone.
      pages: of all layers, or of one if `layer` is None.
      layer: int32 scalar, or None.
      new: where the tokens go.
      pages_at_once: few if they shall stay in a processor's cache, many if a turn of the loop costs a launch.
      pages_in_place: steps of one token a sequence use `s1jax.model.attention.paged` if it can read the pages; for
        NVIDIA GPUs.
      rule: scale, window and softcap of scores; None: scores are multiplied by H**-0.5. With a window, pages that no
        query sees are not read.
      sinks: [N], see `s1jax.model.attention.dispatch.attend`.

    Returns:
      [B, T, N, Hv] in the dtype of `q`, softmax in float32; and the pages with the tokens.
    """
    rule = rule_lib.or_plain(rule, q.shape[-1])
    pages = cache_lib.append(pages, layer, k, v, new, rule.value_dim)
    batch, length, heads = q.shape[:3]
    kv_heads, page_size = k.shape[2], pages.page_size
    span = pages_at_once * page_size
    table = jnp.pad(new.table, ((0, 0), (0, -new.table.shape[1] % pages_at_once)))
    grouped = group_heads(q, kv_heads, rule.scale)
    if pages_in_place and length == 1:
        from s1jax.model.attention import paged  # Triton's part of JAX takes half a second to import

        if paged.can_read(pages):
            return ungroup_heads(paged.attend(grouped, pages, layer, new, rule=rule, sinks=sinks), heads).astype(
                q.dtype
            ), pages
    last = new.lengths[:, None] + jnp.arange(length)  # [B, T], last position that a query sees
    # A TPU keeps values narrower than its registers with the tokens of a page last; any other order copies all pages.
    tokens_last = q.shape[3] < LANES <= page_size or pages.values is None
    source = pages
    if tokens_last and pages.values is not None:
        source = dataclasses.replace(pages, values=pages.values.swapaxes(-1, -2))
    mean_of = "bktip,bikhp->bkth" if tokens_last else "bktip,bikph->bkth"
    value_dim = rule.value_dim if pages.values is None else pages.values.shape[-1]
    # The first page that some query of a sequence sees.
    skipped = jnp.maximum(new.lengths - rule.window + 1, 0) // page_size if rule.window else None

    def attend_pages(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mean = carry
        place, first = _these_pages(table, index * pages_at_once, pages_at_once, skipped)
        some = jax.tree.map(lambda a: a[place] if layer is None else a[layer, place], source)
        keys = some.keys.astype(q.dtype)
        values = keys[..., :value_dim, :] if some.values is None else some.values.astype(q.dtype)
        value_scales = some.key_scales if some.values is None else some.value_scales
        scores = _scores(grouped, keys, some.key_scales, some.rest_scales, value_dim)
        scores = rule_lib.capped(scores, rule.softcap)
        places = first * page_size + jnp.arange(span)  # [I * P], or [B, 1, I * P]
        visible = places <= last[:, :, None]  # [B, T, I * P]
        if rule.window:
            visible &= places > last[:, :, None] - rule.window
        scores = scores.reshape(batch, kv_heads, length, -1, span)
        scores = jnp.where(visible[:, None, :, None], scores, MASKED).reshape(batch, kv_heads, -1, span)
        higher = jnp.maximum(most, jnp.max(scores, axis=-1))
        shrink = jnp.exp(most - higher)
        weights = jnp.exp(scores - higher[..., None])
        total = total * shrink + jnp.sum(weights, axis=-1)
        weights = weights.reshape(*weights.shape[:-1], pages_at_once, page_size)
        if value_scales is not None:
            weights = weights * value_scales.swapaxes(1, 2)[:, :, None]
        here = jnp.einsum(mean_of, weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
        return higher, total, mean * shrink[..., None] + here

    shape = grouped.shape[:3]
    start = (jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape), jnp.zeros((*shape, value_dim)))
    if sinks is not None:
        start = (jnp.broadcast_to(group_sinks(sinks, kv_heads, length), shape), jnp.ones(shape), start[2])
    until = new.lengths + new.count
    longest = jnp.max(jnp.where(new.count > 0, until if skipped is None else until - skipped * page_size, 0))
    _, total, mean = jax.lax.fori_loop(0, (longest + span - 1) // span, attend_pages, start)
    out = mean / jnp.maximum(total, 1)[..., None]  # 0 where nothing was attended to; else the total is at least 1
    return ungroup_heads(out, heads).astype(q.dtype), pages


def _scores(
    q: jax.Array, keys: jax.Array, scales: jax.Array | None, rest_scales: jax.Array | None, value_dim: int
) -> jax.Array:
    """Scores of queries [B, K, R, H] and keys [B, I, K, H, P] of pages with scales [B, I, K, P]: [B, K, R, I, P]."""
    if rest_scales is not None:
        first = _scores(q[..., :value_dim], keys[..., :value_dim, :], scales, None, 0)
        return first + _scores(q[..., value_dim:], keys[..., value_dim:, :], rest_scales, None, 0)
    scores = jnp.einsum("bkth,bikhp->bktip", q, keys, preferred_element_type=jnp.float32)
    return scores if scales is None else scores * scales.swapaxes(1, 2)[:, :, None]


def _these_pages(
    table: jax.Array, start: jax.Array, count: int, skipped: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Pages that one turn of the loop reads.

    Args:
      table: int32 [B, M].
      start: int32 scalar, how many pages of each sequence earlier turns have read.
      count: I.
      skipped: int32 [B], how many pages of each sequence come before the first one that is read; None: none.

    Returns:
      int32 [B, I], where they are in the pool, and which pages of their sequences the first ones are: a scalar, or
      [B, 1, 1].
    """
    if skipped is None:
        return jax.lax.dynamic_slice_in_dim(table, start, count, axis=1), start
    first = skipped[:, None] + start
    index = jnp.minimum(first + jnp.arange(count), table.shape[1] - 1)
    return jnp.take_along_axis(table, index, axis=1), first[:, :, None]
