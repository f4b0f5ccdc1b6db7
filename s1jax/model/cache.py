"""Key/value cache of the decoder, in pages: a row holds as many as it needs, wherever they lie.

The pages of all layers are stacked in one array, or there is one array a layer for loops on a CPU. Nothing is ever
padded to the longest row: rows of 500 and of 32,000 tokens lie side by side, and rows may have pages in common.

Axis letters: L layers, N pages, P slots of a page, B rows, M pages of a row, K key/value heads, H head dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig

_INT8_MAX = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pages:
    """Keys and values; without their first axis, L, the arrays of one layer.

    Attributes:
      keys: [L, N, K, H, P], rotated. The slots come last because products of a few queries with keys [H, P] are 2.5
        times faster on a CPU than with [P, H], which is turned first (benchmarks/decode.py).
      values: [L, N, K, P, H].
      key_scales: float32 [L, N, K, P] where keys are int8: the largest of a slot's H numbers over 127. Else None.
      value_scales: as `key_scales`.
    """

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None

    @property
    def size(self) -> int:
        """P."""
        return self.keys.shape[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What rows have seen so far: row b's token at position p lies in slot p % P of page table[b, p // P].

    Attributes:
      pages: stacked, or a tuple of one a layer, see `unstack`.
      table: int32 [B, M].
      lengths: int32 [B], tokens held for each row.
    """

    pages: Any
    table: jax.Array
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where new tokens [B, T] go.

    Attributes:
      table: int32 [B, M].
      lengths: int32 [B], tokens that rows hold before them.
      count: int32 [B], tokens of each row, 0..T; what is right of them is padding and is not written.
    """

    table: jax.Array
    lengths: jax.Array
    count: jax.Array


def init_pages(config: ModelConfig, count: int, size: int, dtype: DTypeLike = jnp.float32) -> Pages:
    """`count` empty pages of `size` slots for every layer; their memory is `bytes_per_slot` * count * size."""
    lead = (config.num_layers, count, config.num_kv_heads)
    scales = jnp.zeros((*lead, size), jnp.float32) if jnp.dtype(dtype) == jnp.int8 else None
    return Pages(
        jnp.zeros((*lead, config.head_dim, size), dtype),
        jnp.zeros((*lead, size, config.head_dim), dtype),
        scales,
        scales,
    )


def bytes_per_slot(config: ModelConfig, dtype: DTypeLike) -> int:
    """Bytes that one token of one row takes in the pages of all layers."""
    kind = jnp.dtype(dtype)
    per_head = config.head_dim * kind.itemsize + (4 if kind == jnp.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * per_head


def init_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32, page: int = 64) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens, each with pages of its own."""
    each = -(-length // page)
    table = jnp.arange(batch * each, dtype=jnp.int32).reshape(batch, each)
    return Cache(init_pages(config, batch * each, page, dtype), table, jnp.zeros((batch,), jnp.int32))


def unstack(pages: Pages) -> tuple[Pages, ...]:
    """The same pages, the arrays of each layer apart.

    XLA copies a layer's slice of stacked arrays before it multiplies with it; on a CPU that took 0.45 of 4.3 ms a
    layer at 16 rows of 256 slots (benchmarks/decode.py).
    """
    return tuple(jax.tree.map(lambda a, i=i: a[i], pages) for i in range(pages.keys.shape[0]))


def append(pages: Pages, layer: jax.Array | None, k: jax.Array, v: jax.Array, new: Slots) -> Pages:
    """Writes one layer's new keys and values into the next slots of each row.

    Args:
      pages: of all layers, or of one where `layer` is None.
      layer: int32 scalar, or None.
      k: [B, T, K, H].
      v: [B, T, K, H].
      new: where they go.
    """
    tokens = Pages(k, v)
    if pages.key_scales is not None:
        (k, k_scale), (v, v_scale) = quantize(k), quantize(v)
        tokens = Pages(k, v, k_scale, v_scale)
    return _write_slots(pages, tokens, new) if layer is None else _write_pages(pages, layer, tokens, new)


def _write_slots(pages: Pages, tokens: Pages, new: Slots) -> Pages:
    """`append` to one layer, slot by slot: little traffic, which is what counts on a CPU."""
    steps = jnp.arange(tokens.keys.shape[1])
    slots = new.lengths[:, None] + steps  # [B, T]
    page = _places(pages, new, slots // pages.size, steps < new.count[:, None])

    def write(into: jax.Array, these: jax.Array, axis: int) -> jax.Array:
        # Advanced indices apart from each other move to the front: the update is [B, T, K, H], as `k` is.
        place = (page, *(slice(None),) * axis, slots % pages.size)
        return into.at[place].set(these.astype(into.dtype), mode="drop")

    return _each(write, pages, tokens)


def _write_pages(pages: Pages, layer: jax.Array, tokens: Pages, new: Slots) -> Pages:
    """`append` to stacked layers, page by page: those that get tokens are read, filled and written back whole.

    Slots written one by one want the pages to lie in memory otherwise than reading them does, and the TPU compiler then
    copies all of them twice, at every layer of every step (26 of 60 GB for an id of Qwen2.5-7B at 8k, one row).
    """
    (batch, length), size = tokens.keys.shape[:2], pages.size
    index = new.lengths[:, None] // size + jnp.arange((length + 2 * size - 2) // size)  # [B, C], pages of the row
    token = index[..., None] * size + jnp.arange(size) - new.lengths[:, None, None]  # [B, C, P], -1: an older one
    fresh = (token >= 0) & (token < new.count[:, None, None])
    page = _places(pages, new, index, fresh.any(-1))
    token = jnp.clip(token, 0, length - 1)

    def write(into: jax.Array, these: jax.Array, axis: int) -> jax.Array:
        these = these[jnp.arange(batch)[:, None, None], token].astype(into.dtype)  # [B, C, P, K, ...]
        these = jnp.moveaxis(these, 2, axis + 2)
        shape = [*fresh.shape[:2], *(1,) * (into.ndim - 2)]
        shape[axis + 2] = size
        old = into.at[layer, page].get(mode="clip")
        return into.at[layer, page].set(jnp.where(fresh.reshape(shape), these, old), mode="drop")

    return _each(write, pages, tokens)


def _places(pages: Pages, new: Slots, index: jax.Array, written: jax.Array) -> jax.Array:
    """Pages `index` of rows, int32 [B, ...], among all pages; past the last one, to be dropped, where not `written`."""
    page = jnp.take_along_axis(new.table, jnp.minimum(index, new.table.shape[1] - 1), axis=1)
    return jnp.where(written, page, pages.values.shape[-4])


def _each(write: Callable[[jax.Array, jax.Array, int], jax.Array], pages: Pages, tokens: Pages) -> Pages:
    """`write(array, tokens, axis)` for every array; `axis`, counted behind that of pages, has the slots."""
    axes = Pages(2, 1, *(None if scales is None else 1 for scales in (pages.key_scales, pages.value_scales)))  # type: ignore[arg-type]
    return jax.tree.map(write, pages, tokens, axes)


def quantize(x: jax.Array, axes: int | tuple[int, ...] = -1) -> tuple[jax.Array, jax.Array]:
    """int8, and float32 scales without `axes`, along which one is shared; their product is `x` up to half a scale."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / _INT8_MAX
    return jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), jnp.squeeze(scale, axes)


def copy_pages(pages: Any, source: Pages, places: jax.Array) -> Any:
    """Copies page i of `source` to page places[i] of `pages`, in all layers; places past the end are dropped.

    Args:
      pages: stacked, or a tuple of one a layer.
      source: stacked, in a floating type; quantised here where `pages` are.
      places: int32 [number of pages of `source`].
    """
    if isinstance(pages, tuple):
        return tuple(_copy(own, one, places) for own, one in zip(pages, unstack(source), strict=True))
    return _copy(pages, source, (slice(None), places))


def _copy(pages: Pages, source: Pages, where: Any) -> Pages:
    if pages.key_scales is not None:
        keys, key_scales = quantize(source.keys.swapaxes(-1, -2))
        values, value_scales = quantize(source.values)
        source = Pages(keys.swapaxes(-1, -2), values, key_scales, value_scales)
    return jax.tree.map(lambda into, new: into.at[where].set(new.astype(into.dtype), mode="drop"), pages, source)
