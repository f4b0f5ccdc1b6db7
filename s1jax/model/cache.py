"""Paged KV cache of the decoder: every sequence holds as many pages as it needs, anywhere in one pool.

The pages of all layers are stacked in one array, or there is one array a layer. No sequence is padded to the longest
one: sequences of 500 and of 32,000 tokens share the pool, and sequences may share pages.

Axis letters: L layers, N pages, P tokens of a page (page_size), B batch slots, M pages of a sequence, K key/value
heads, H head dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import EllipsisType

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig
from s1jax.model import quant
from s1jax.model.layouts import Unstacked

_Index = slice | EllipsisType | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pages:
    """Keys and values; without their first axis, L, the arrays of one layer.

    Attributes:
      keys: [L, N, K, H, P], rotated. The tokens come last because products of a few queries with keys [H, P] are 2.5
        times faster on a CPU than with [P, H], which is transposed first (benchmarks/decode.py).
      values: [L, N, K, P, H]; None: a part of the keys (`MLA`).
      key_scales: float32 [L, N, K, P] if keys are int8: the largest magnitude of a token's H numbers over 127. Else
        None.
      value_scales: as `key_scales`, if there are values.
      rest_scales: as `key_scales`, if there are none: those are then of the numbers that are values as well, these of
        the rest of a key, which is rotated and may be many times larger.
    """

    keys: jax.Array
    values: jax.Array | None
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None
    rest_scales: jax.Array | None = None

    @property
    def page_size(self) -> int:
        """P."""
        return self.keys.shape[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The tokens that sequences hold: position p of sequence b is token p % P of page table[b, p // P].

    Attributes:
      pages: of all layers, stacked or not.
      table: int32 [B, M].
      lengths: int32 [B], tokens held for each sequence.
      limits: int32 [B], the most tokens that each sequence will ever have. `longrope` chooses its frequencies by it,
        because keys of one choice are wrong for the other; None: the model has none.
    """

    pages: Pages | Unstacked[Pages]
    table: jax.Array
    lengths: jax.Array
    limits: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewTokens:
    """Where new tokens [B, T] go.

    Attributes:
      table: int32 [B, M].
      lengths: int32 [B], tokens that the sequences hold before them.
      count: int32 [B], new tokens of each sequence, 0..T; what is right of them is padding and is not written.
    """

    table: jax.Array
    lengths: jax.Array
    count: jax.Array


def init_pages(config: ModelConfig, count: int, page_size: int, dtype: DTypeLike = jnp.float32) -> Pages:
    """`count` empty pages for every layer; their memory is `bytes_per_token` * count * page_size."""
    lead = (config.num_layers, count, config.num_kv_heads)
    scales = jnp.zeros((*lead, page_size), jnp.float32) if jnp.dtype(dtype) == jnp.int8 else None
    key_dim, value_dim = config.cached_dims
    keys = jnp.zeros((*lead, key_dim, page_size), dtype)
    if not value_dim:
        return Pages(keys, None, scales, rest_scales=scales)
    return Pages(keys, jnp.zeros((*lead, page_size, value_dim), dtype), scales, scales)


def bytes_per_token(config: ModelConfig, dtype: DTypeLike) -> int:
    """Bytes that one token takes in the pages of all layers."""
    kind = jnp.dtype(dtype)
    scales = 2 * 4 if kind == jnp.int8 else 0
    return config.num_layers * config.num_kv_heads * (sum(config.cached_dims) * kind.itemsize + scales)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32, page: int = 64) -> Cache:
    """An empty cache for `batch` sequences of at most `length` tokens, each with its own pages of `page` tokens.

    Its `limits` are `length`.
    """
    each = -(-length // page)
    table = jnp.arange(batch * each, dtype=jnp.int32).reshape(batch, each)
    limits = jnp.full((batch,), length, jnp.int32) if config.rope_depends_on_length else None
    return Cache(init_pages(config, batch * each, page, dtype), table, jnp.zeros((batch,), jnp.int32), limits)


def unstack(pages: Pages) -> Unstacked[Pages]:
    """The same pages with one tree of arrays a layer.

    XLA copies a layer's slice of stacked arrays before it multiplies with it. On a CPU that took 0.45 of 4.3 ms a layer
    at 16 sequences of 256 tokens (benchmarks/decode.py).
    """
    return Unstacked(tuple(jax.tree.map(lambda a, i=i: a[i], pages) for i in range(pages.keys.shape[0])))


def append(
    pages: Pages,
    layer: jax.Array | int | None,
    k: jax.Array,
    v: jax.Array | None,
    new: NewTokens,
    value_dim: int = 0,
) -> Pages:
    """Writes one layer's new keys and values after those that each sequence holds.

    Args:
      pages: of all layers, or of one if `layer` is None.
      layer: int32 scalar, or None.
      k: [B, T, K, H].
      v: [B, T, K, H]; None where the pages have no values.
      new: where they go.
      value_dim: where the pages have no values, how many numbers of a key are values as well.
    """
    tokens = Pages(k, v)
    if pages.key_scales is not None and v is not None:
        keys, values = quant.quantize(k), quant.quantize(v)
        tokens = Pages(keys.values, values.values, keys.scale, values.scale)
    elif pages.key_scales is not None:
        keys, rest = quant.quantize(k[..., :value_dim]), quant.quantize(k[..., value_dim:])
        both = jnp.concatenate([keys.values, rest.values], axis=-1)
        tokens = Pages(both, None, keys.scale, rest_scales=rest.scale)
    return _write_tokens(pages, tokens, new) if layer is None else _write_pages(pages, layer, tokens, new)


def _write_tokens(pages: Pages, tokens: Pages, new: NewTokens) -> Pages:
    """`append` to one layer, token by token: little traffic, which is what counts on a CPU."""
    steps = jnp.arange(tokens.keys.shape[1])
    positions = new.lengths[:, None] + steps  # [B, T]
    page = _places(pages, new, positions // pages.page_size, steps < new.count[:, None])

    def write(into: jax.Array, these: jax.Array, axis: int) -> jax.Array:
        # Advanced indices with slices between them move to the front: the update is [B, T, K, H], as `k` is.
        place = (page, *(slice(None),) * axis, positions % pages.page_size)
        return into.at[place].set(these.astype(into.dtype), mode="drop")

    return _each(write, pages, tokens)


def _write_pages(pages: Pages, layer: jax.Array | int, tokens: Pages, new: NewTokens) -> Pages:
    """`append` to stacked layers, page by page: a page that gets tokens is read, filled and written back whole.

    Writing token by token wants another memory layout than reading does. The TPU compiler then copies all pages twice,
    at every layer of every step: 26 of 60 GB for a token of Qwen2.5-7B at 8k with one sequence.
    """
    (batch, length), size = tokens.keys.shape[:2], pages.page_size
    index = new.lengths[:, None] // size + jnp.arange((length + 2 * size - 2) // size)  # [B, C], pages of the sequence
    token = index[..., None] * size + jnp.arange(size) - new.lengths[:, None, None]  # [B, C, P], negative: an older one
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


def _places(pages: Pages, new: NewTokens, index: jax.Array, written: jax.Array) -> jax.Array:
    """Places in the pool of the sequences' pages `index`, int32 [B, ...]; past its end (dropped) if not written."""
    page = jnp.take_along_axis(new.table, jnp.minimum(index, new.table.shape[1] - 1), axis=1)
    return jnp.where(written, page, pages.keys.shape[-4])


def _each(write: Callable[[jax.Array, jax.Array, int], jax.Array], pages: Pages, tokens: Pages) -> Pages:
    """Calls `write(array, tokens, axis)` for every array; `axis` is that of P, counted from the one after N."""

    def optional(into: jax.Array | None, these: jax.Array | None) -> jax.Array | None:
        return None if into is None or these is None else write(into, these, 1)

    return Pages(
        write(pages.keys, tokens.keys, 2),
        optional(pages.values, tokens.values),
        optional(pages.key_scales, tokens.key_scales),
        optional(pages.value_scales, tokens.value_scales),
        optional(pages.rest_scales, tokens.rest_scales),
    )


def copy_page(pages: Pages | Unstacked[Pages], source: jax.Array, target: jax.Array) -> Pages | Unstacked[Pages]:
    """Copies page `source` to page `target`, int32 scalars, in all layers; a target past the end is dropped.

    Args:
      pages: stacked or not.
      source: of the page that is read.
      target: of the page that is written.
    """
    lead: tuple[_Index, ...] = () if isinstance(pages, Unstacked) else (slice(None),)
    into, from_ = (*lead, target), (*lead, source)
    return jax.tree.map(lambda a: a.at[into].set(a.at[from_].get(mode="clip"), mode="drop"), pages)
