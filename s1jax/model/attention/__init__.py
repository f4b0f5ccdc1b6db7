"""Attention: one entry point for training over whole rows, one for a step against the cache.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension,
P slots of a page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from s1jax.model import cache as cache_lib
from s1jax.model.attention import chunked, fused
from s1jax.model.blocks import Part

_BLOCK = 512
_RUNS, _SHORTEST_RUN = 4, 128  # of queries

# (q [B, T, N, H], k [B, T, K, H], v [B, T, K, H], segment_ids [B, T]) -> [B, T, N, H], as the decoder calls it:
# `attend` on one device, what `s1jax.parallel.attend` makes of it on a mesh.
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
# (q, k, v, pages, layer, new), as `attend_cached`; on a mesh what `s1jax.parallel.attend_cached` makes of it.
AttendCached = Callable[..., tuple[jax.Array, cache_lib.Pages]]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    implementation: str = "xla",
    *,
    part: Part | None = None,
) -> jax.Array:
    """Causal attention within segments.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H]; query head n uses key head n // G.
      v: [B, S, K, H].
      segment_ids: int32 [B, T]; a token sees earlier tokens of its own segment and itself.
      implementation: `xla`, einsums that materialise scores of [B, N, T / 4, S]; `chunked`, memory linear in S on any
        backend (`chunked.py`); `splash`, `cudnn` (`fused.py`) and `flash` (`flash.py`) where `choose` says so.
      part: which queries of a row these are; None: they are the row, S = T. Otherwise two runs of T / 2 neighbours,
        which together see half of all keys (`s1jax.parallel.places`).

    Returns:
      [B, T, N, H] in the dtype of `q`; softmax in float32.

    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation == "cudnn":
        if part is not None:
            raise ValueError("attention implementation 'cudnn' has no part of a row; use 'flash'")
        return fused.cudnn(q, k, v, segment_ids)
    if implementation == "splash":
        return fused.splash(q, k, v, segment_ids, part)
    if implementation == "flash":
        from s1jax.model.attention import flash  # Triton's part of JAX takes half a second to import

        return flash.attend(q, k, v, segment_ids, part)
    batch, length, _, head_dim = q.shape
    # Blocks may not reach over the border between two runs.
    block = min(_BLOCK, length) if part is None else math.gcd(_BLOCK, length // 2)
    places = jnp.arange(length) if part is None else part.own
    key_segment_ids = segment_ids if part is None else part.segment_ids
    if implementation == "chunked":
        grouped = (q * head_dim**-0.5).reshape(batch, length, k.shape[2], -1, head_dim)
        segments = (segment_ids, key_segment_ids)
        return chunked.attend(grouped, k, v, *segments, places[::block] // block, block).reshape(q.shape)
    if implementation != "xla":
        known = "xla, chunked, splash, cudnn or flash"
        raise ValueError(f"attention implementation {implementation!r} is unknown; use {known}")
    causal = places[:, None] >= jnp.arange(k.shape[1])
    visible = causal & (segment_ids[:, :, None] == key_segment_ids[:, None, :])  # [B, T, S]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    # Whole rows in runs of queries, each against the keys up to its end: 3/8 of the scores are never computed, and a
    # train step of benchmarks/train_step.py took 3.8 s instead of 4.1.
    run = length if part is not None else max(_SHORTEST_RUN, -(-length // _RUNS))
    means = []
    for start in range(0, length, run):
        here, end = slice(start, start + run), k.shape[2] if part is not None else start + run
        means.append(_softmax_mean(q[:, here], k[:, :, :end], v[:, :, :end], visible[:, here, :end]))
    return checkpoint_name(jnp.concatenate(means, axis=1), "attention")


def choose(asked: str, platform: str, dtype: str, packed: bool, sequence: int, head_dim: int) -> tuple[str, str | None]:
    """Picks the implementation for a run.

    Args:
      asked: `auto` takes the fastest that computes the batches exactly; a name is taken if it does, and `chunked`
        otherwise.
      platform: `cpu`, `gpu` (or `cuda`) or `tpu`.
      dtype: of activations.
      packed: rows hold several segments.
      sequence: devices that share a row.
      head_dim: H.

    Returns:
      its name for `attend`, and a sentence where it isn't what was asked for.
    """
    nvidia = [
        (platform not in ("gpu", "cuda"), "runs on NVIDIA GPUs only"),
        (dtype != "bfloat16", "wants train.compute_dtype=bfloat16"),
    ]
    against = {
        "splash": [(platform != "tpu", "runs on TPU only")],
        "cudnn": [
            *nvidia,
            (packed, "knows no segments (data.batching=packed)"),
            (sequence > 1, "has no part of a row (mesh.sequence > 1)"),
            (head_dim % 8 > 0 or head_dim > 256, f"wants a head_dim of 8, 16, ..., 256, not {head_dim}"),
        ],
        "flash": nvidia,
    }
    reasons = {name: next((why for applies, why in pairs if applies), None) for name, pairs in against.items()}
    if asked == "auto":
        return next((name for name, why in reasons.items() if why is None), "chunked"), None
    why = reasons.get(asked)
    if why is None:
        return asked, None
    return "chunked", f"train.attention={asked} {why}; chunked is used instead."


def attend_cached(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pages: cache_lib.Pages,
    layer: jax.Array | None,
    new: cache_lib.Slots,
    *,
    pages_at_once: int = 1,
    pages_in_place: bool = False,
) -> tuple[jax.Array, cache_lib.Pages]:
    """Appends new tokens to one layer of the cache and lets them attend to all that their rows hold.

    Some pages at a time, until the longest row has no more: memory for their scores, and no work for slots that nobody
    uses yet.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      pages: of all layers, or of one where `layer` is None.
      layer: int32 scalar, or None.
      new: where the tokens go.
      pages_at_once: few where they shall stay in a processor's cache, many where a turn of the loop costs a launch.
      pages_in_place: one token a row is done by `s1jax.model.attention.paged`, where it can: on NVIDIA GPUs.

    Returns:
      [B, T, N, H] in the dtype of `q`, softmax in float32; and the pages with the tokens.
    """
    pages = cache_lib.append(pages, layer, k, v, new)
    batch, length = q.shape[:2]
    kv_heads, size = k.shape[2], pages.size
    span = pages_at_once * size
    table = jnp.pad(new.table, ((0, 0), (0, -new.table.shape[1] % pages_at_once)))
    grouped = _grouped(q, kv_heads)
    if pages_in_place and length == 1:
        from s1jax.model.attention import paged  # Triton, as in `attend`

        if paged.can_read(pages):
            return _ungrouped(paged.attend(grouped, pages, layer, new), q.shape).astype(q.dtype), pages
    last = new.lengths[:, None] + jnp.arange(length)  # [B, T], last slot that a query sees
    # A TPU keeps values narrower than its registers with their slots last; read otherwise, all pages would be copied.
    turn = q.shape[3] < fused.LANES <= size
    source = dataclasses.replace(pages, values=pages.values.swapaxes(-1, -2)) if turn else pages
    mean_of = "bktip,bikhp->bkth" if turn else "bktip,bikph->bkth"

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
        scores = jnp.where(visible[:, None, :, None], scores, chunked.MASKED).reshape(batch, kv_heads, -1, span)
        higher = jnp.maximum(most, jnp.max(scores, axis=-1))
        shrink = jnp.exp(most - higher)
        weights = jnp.exp(scores - higher[..., None])
        total = total * shrink + jnp.sum(weights, axis=-1)
        weights = weights.reshape(*weights.shape[:-1], pages_at_once, size)
        if some.value_scales is not None:
            weights = weights * some.value_scales.swapaxes(1, 2)[:, :, None]
        here = jnp.einsum(mean_of, weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
        return higher, total, mean * shrink[..., None] + here

    shape = grouped.shape[:3]
    start = (jnp.full(shape, chunked.MASKED, jnp.float32), jnp.zeros(shape), jnp.zeros(grouped.shape))
    longest = jnp.max(jnp.where(new.count > 0, new.lengths + new.count, 0))
    _, total, mean = jax.lax.fori_loop(0, (longest + span - 1) // span, attend_pages, start)
    out = mean / jnp.maximum(total, 1)[..., None]  # 0 where nothing was attended to; else the total is at least 1
    return _ungrouped(out, q.shape).astype(q.dtype), pages


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> scaled [B, K, T * G, H]: a group's queries are rows of one product with their common keys."""
    batch, length, _, head_dim = q.shape
    grouped = (q * head_dim**-0.5).reshape(batch, length, kv_heads, -1, head_dim).swapaxes(1, 2)
    return grouped.reshape(batch, kv_heads, -1, head_dim)


def _ungrouped(out: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, K, T * G, H] -> [B, T, N, H], which is `shape`."""
    batch, length, _, head_dim = shape
    return out.reshape(batch, out.shape[1], length, -1, head_dim).swapaxes(1, 2).reshape(shape)


def _softmax_mean(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """q [B, T, N, H], k and v [B, K, S, H], visible bool [B, T, S] -> [B, T, N, H]."""
    batch, length = q.shape[:2]
    kv_heads = k.shape[1]
    scores = jnp.einsum("bkth,bksh->bkts", _grouped(q, kv_heads), k, preferred_element_type=jnp.float32)
    shape = scores.shape
    scores = scores.reshape(batch, kv_heads, length, -1, k.shape[2])
    scores = jnp.where(visible[:, None, :, None, :], scores, chunked.MASKED).reshape(shape)
    # In this shape here and in the product: a backward pass would keep one array for each otherwise.
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return _ungrouped(jnp.einsum("bkts,bksh->bkth", weights, v), q.shape)
