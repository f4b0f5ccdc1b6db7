"""Attention of new tokens over the paged KV cache: prefill and decode steps on any backend.

Axis letters: B batch, T query length, N query heads, K key/value heads, G = N / K, H head dimension, P tokens of a
page, I pages at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from s1jax.model import cache as cache_lib
from s1jax.model.attention.chunked import MASKED
from s1jax.model.attention.fused import LANES
from s1jax.model.attention.xla import group_heads, ungroup_heads

# (q, k, v, pages, layer, new) of `attend_cached`; on a mesh `s1jax.parallel.ops.attend_cached` makes it.
AttendCached = Callable[..., tuple[jax.Array, cache_lib.Pages]]


def attend_cached(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pages: cache_lib.Pages,
    layer: jax.Array | int | None,
    new: cache_lib.NewTokens,
    *,
    pages_at_once: int = 1,
    pages_in_place: bool = False,
) -> tuple[jax.Array, cache_lib.Pages]:
    """Appends new tokens to one layer of the cache and attends to all tokens that their sequences hold.

    A loop reads `pages_at_once` pages of every sequence at a time and stops after the longest sequence. That bounds the
    memory for scores, and batch slots that nobody uses cost nothing.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      pages: of all layers, or of one if `layer` is None.
      layer: int32 scalar, or None.
      new: where the tokens go.
      pages_at_once: few if they shall stay in a processor's cache, many if a turn of the loop costs a launch.
      pages_in_place: steps of one token a sequence use `s1jax.model.attention.paged` if it can read the pages; for
        NVIDIA GPUs.

    Returns:
      [B, T, N, H] in the dtype of `q`, softmax in float32; and the pages with the tokens.
    """
    pages = cache_lib.append(pages, layer, k, v, new)
    batch, length = q.shape[:2]
    kv_heads, page_size = k.shape[2], pages.page_size
    span = pages_at_once * page_size
    table = jnp.pad(new.table, ((0, 0), (0, -new.table.shape[1] % pages_at_once)))
    grouped = group_heads(q, kv_heads)
    if pages_in_place and length == 1:
        from s1jax.model.attention import paged  # Triton's part of JAX takes half a second to import

        if paged.can_read(pages):
            return ungroup_heads(paged.attend(grouped, pages, layer, new), q.shape).astype(q.dtype), pages
    last = new.lengths[:, None] + jnp.arange(length)  # [B, T], last position that a query sees
    # A TPU keeps values narrower than its registers with the tokens of a page last; any other order copies all pages.
    tokens_last = q.shape[3] < LANES <= page_size
    source = dataclasses.replace(pages, values=pages.values.swapaxes(-1, -2)) if tokens_last else pages
    mean_of = "bktip,bikhp->bkth" if tokens_last else "bktip,bikph->bkth"

    def attend_pages(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mean = carry
        place = jax.lax.dynamic_slice_in_dim(table, index * pages_at_once, pages_at_once, axis=1)  # i: of these pages
        some = jax.tree.map(lambda a: a[place] if layer is None else a[layer, place], source)
        keys, values = some.keys.astype(q.dtype), some.values.astype(q.dtype)
        scores = jnp.einsum("bkth,bikhp->bktip", grouped, keys, preferred_element_type=jnp.float32)
        if some.key_scales is not None:
            scores = scores * some.key_scales.swapaxes(1, 2)[:, :, None]
        visible = index * span + jnp.arange(span) <= last[:, :, None]  # [B, T, I * P]
        scores = scores.reshape(batch, kv_heads, length, -1, span)
        scores = jnp.where(visible[:, None, :, None], scores, MASKED).reshape(batch, kv_heads, -1, span)
        higher = jnp.maximum(most, jnp.max(scores, axis=-1))
        shrink = jnp.exp(most - higher)
        weights = jnp.exp(scores - higher[..., None])
        total = total * shrink + jnp.sum(weights, axis=-1)
        weights = weights.reshape(*weights.shape[:-1], pages_at_once, page_size)
        if some.value_scales is not None:
            weights = weights * some.value_scales.swapaxes(1, 2)[:, :, None]
        here = jnp.einsum(mean_of, weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
        return higher, total, mean * shrink[..., None] + here

    shape = grouped.shape[:3]
    start = (jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape), jnp.zeros(grouped.shape))
    longest = jnp.max(jnp.where(new.count > 0, new.lengths + new.count, 0))
    _, total, mean = jax.lax.fori_loop(0, (longest + span - 1) // span, attend_pages, start)
    out = mean / jnp.maximum(total, 1)[..., None]  # 0 where nothing was attended to; else the total is at least 1
    return ungroup_heads(out, q.shape).astype(q.dtype), pages
