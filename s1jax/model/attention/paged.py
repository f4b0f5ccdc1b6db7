"""Attention of one new token a sequence over the pages of its cache, in place, on NVIDIA GPUs.

On other machines `s1jax.model.attention.cached.attend_cached` first gathers some pages of every sequence into an array.
Several programs share the pages of a sequence, so that few long sequences use the whole chip as well (Dao et al. 2023,
"Flash-Decoding").

Axis letters: B sequences, N pages, P tokens of a page, M pages of a sequence, K key/value heads, G query heads per K,
H head dimension, S shares of a sequence's pages.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from s1jax.model import cache as cache_lib
from s1jax.model.attention import flash
from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.chunked import MASKED
from s1jax.model.attention.rule import AttentionRule

_PROGRAMS = 512  # of one call: about four for each of an H100's 132 processors


def can_read(pages: cache_lib.Pages) -> bool:
    """Whether blocks of these pages can be operands of a product: H and P are powers of two of at least 16."""
    if pages.values is None:
        return False
    sizes = (pages.values.shape[-1], pages.page_size)
    return all(size >= flash.SMALLEST and size & (size - 1) == 0 for size in sizes)


def attend(
    q: jax.Array,
    pages: cache_lib.Pages,
    layer: jax.Array | int | None,
    new: cache_lib.NewTokens,
    interpret: bool = False,
    *,
    rule: AttentionRule | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attention over all tokens of each sequence, its newest one included.

    Args:
      q: [B, K, G, H], scaled.
      pages: of all layers, or of one where `layer` is None, with the new tokens; `can_read` says yes to them.
      layer: int32 scalar, or None.
      new: where the new tokens went, one a row or none; rows without one get 0.
      interpret: runs on any backend, slowly, for tests.
      rule: window and softcap; pages outside of the window are not read.
      sinks: [K G].

    Returns:
      float32 [B, K, G, H].
    """
    rule = rule_lib.or_plain(rule, q.shape[-1])
    batch, kv_heads, group, head_dim = q.shape
    width, size = new.table.shape[1], pages.page_size
    shares = min(width, 1 << max(0, math.ceil(math.log2(_PROGRAMS / (batch * kv_heads)))))
    heads = max(flash.SMALLEST, pl.next_power_of_2(group))
    q = jnp.pad(q, ((0, 0), (0, 0), (0, heads - group), (0, 0)))
    lengths = jnp.where(new.count > 0, new.lengths + 1, 0)
    table, arrays = new.table, jax.tree.leaves(pages)  # scales only where there are any
    if layer is not None:
        table = layer * pages.keys.shape[1] + table
        arrays = [array.reshape(-1, *array.shape[2:]) for array in arrays]
    of_head = [pl.BlockSpec((array.shape[0], None, *array.shape[2:]), _of_head(array.ndim - 2)) for array in arrays]
    one = (None, None, None, heads)
    partial = pl.BlockSpec(one, lambda b, h, s: (b, h, s, 0))
    statistic = jax.ShapeDtypeStruct((batch, kv_heads, shares, heads), jnp.float32)
    top, total, mean = pl.pallas_call(
        functools.partial(_kernel, shares=shares, size=size, rule=rule),
        name="paged_attention",
        grid=(batch, kv_heads, shares),
        in_specs=[
            pl.BlockSpec((None, None, heads, head_dim), lambda b, h, s: (b, h, 0, 0)),
            pl.BlockSpec((None, width), lambda b, h, s: (b, 0)),
            pl.BlockSpec((None,), lambda b, h, s: (b,)),
            *of_head,
        ],
        out_specs=[partial, partial, pl.BlockSpec((*one, head_dim), lambda b, h, s: (b, h, s, 0, 0))],
        out_shape=[statistic, statistic, jax.ShapeDtypeStruct((*statistic.shape, head_dim), jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
    )(q, table, lengths, *arrays)
    highest = top.max(2, keepdims=True)
    if sinks is not None:
        sink = jnp.pad(
            sinks.astype(jnp.float32).reshape(kv_heads, 1, group) * flash.LOG2E, ((0, 0), (0, 0), (0, heads - group))
        )
        highest = jnp.maximum(highest, sink)
    weight = jnp.exp2(top - highest)  # of each share [B, K, S, G]
    total = jnp.sum(total * weight, axis=2)
    if sinks is not None:
        total += jnp.exp2(sink - highest)[:, :, 0]
    out = jnp.sum(mean * weight[..., None], axis=2) / jnp.maximum(total, 1)[..., None]
    return out[:, :, :group]


def _of_head(rest: int) -> Callable[..., tuple[int, ...]]:
    return lambda b, h, s: (0, h, *(0,) * rest)


def _kernel(q_ref, table_ref, length_ref, keys_ref, values_ref, *refs, shares, size, rule):
    """One row's heads [G, H] over one share of its pages: largest score, sum and unscaled mean; scores are base 2."""
    *scales, top_ref, total_ref, mean_ref = refs
    q, length, share = q_ref[...], length_ref[...], pl.program_id(2)
    used = (length + size - 1) // size

    def add(j: jax.Array, running: flash.Running) -> flash.Running:
        page = table_ref[j]
        scores = triton.dot(q, keys_ref[page, :, :].astype(q.dtype))
        if scales:
            scores = scores * scales[0][page, :][None]
        scores = rule_lib.capped(scores, rule.softcap) * flash.LOG2E
        places = j * size + jnp.arange(size)
        visible = places < length
        if rule.window:
            visible &= places >= length - rule.window

        def weigh(weights: jax.Array) -> jax.Array:
            if scales:
                weights = weights * scales[1][page, :][None]
            return triton.dot(weights.astype(q.dtype), values_ref[page, :, :].astype(q.dtype))

        return flash.fold(running, jnp.where(visible[None], scores, MASKED), weigh)

    first = jnp.maximum(length - rule.window, 0) // size if rule.window else 0
    bounds = first + (used - first) * share // shares, first + (used - first) * (share + 1) // shares
    top_ref[...], total_ref[...], mean_ref[...] = jax.lax.fori_loop(*bounds, add, flash.start_of(q))
