"""The teacher's expectation at each place, as its most probable ids or as draws, from logits that exist in chunks.

Axis letters: B rows, T length, C chunk length, D model, V vocabulary, N draws; b and v are one device's share of B and
V. The vocabulary is split among the devices as in `s1jax.training.losses.chunks`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from s1jax.model import blocks
from s1jax.parallel import mesh as mesh_lib
from s1jax.training.losses import chunks
from s1jax.training.losses.chunks import Columns, Head


def top_k(
    head: Head, legal: jax.Array, k: int, chunk: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k most probable ids of each place; of equal ones those with the lowest ids.

    Args:
      head: [B, T, D] and [D, V].
      legal: bool [V], ids that the tokenizer has, at least k. No other id has mass.
      k: number of ids.
      chunk: C; logits of [b, C, v] exist at one time on a device.
      mesh: of `mesh_lib.make_mesh`. None: everything is on one device.

    Returns:
      ids int32 [B, T, k]; their log-probabilities float32 [B, T, k], in falling order; the logarithm of the mass of all
      other ids, float32 [B, T].
    """

    def of_chunk(logits: jax.Array, _: None, columns: Columns) -> tuple[jax.Array, jax.Array, jax.Array]:
        top = columns.max(logits.max(-1))
        norm = columns.sum(jnp.exp(logits - top[..., None]).sum(-1))
        best, place = jax.lax.top_k(logits, min(k, logits.shape[-1]))
        ids = columns.ids[place]
        if columns.is_split:
            best, ids = (jax.lax.all_gather(x, chunks.VOCAB, axis=-1, tiled=True) for x in (best, ids))
            best, place = jax.lax.top_k(best, k)
            ids = jnp.take_along_axis(ids, place, -1)
        others = columns.put(logits, ids, jnp.full(ids.shape, -jnp.inf))
        rest = columns.sum(jnp.exp(others - top[..., None]).sum(-1))
        return ids, best - (top + jnp.log(norm))[..., None], jnp.log(rest) - jnp.log(norm)

    return _over_chunks(of_chunk, head, None, legal, chunk, mesh)


def draws(head: Head, legal: jax.Array, uniforms: jax.Array, chunk: int, mesh: Mesh | None) -> jax.Array:
    """Ids that are drawn from each place's distribution, by inverting its cumulative sum.

    Args:
      head: [B, T, D] and [D, V].
      legal: bool [V], ids that the tokenizer has. No other id has mass.
      uniforms: float32 [B, T, N] in [0, 1), which determine the draws.
      chunk: C; logits of [b, C, v] exist at one time on a device.
      mesh: of `mesh_lib.make_mesh`. None: everything is on one device.

    Returns:
      int32 [B, T, N].
    """

    def of_chunk(logits: jax.Array, uniforms: jax.Array, columns: Columns) -> jax.Array:
        sums = jnp.cumsum(jnp.exp(logits - columns.max(logits.max(-1))[..., None]), -1)
        if not columns.is_split:
            return columns.ids[_find(sums, uniforms * sums[..., -1:])]
        ends = jnp.cumsum(jax.lax.all_gather(sums[..., -1], chunks.VOCAB, axis=-1), -1)  # [b, C, slices]
        at = uniforms * ends[..., -1:]
        owner = _find(ends, at)
        before = jnp.where(owner > 0, jnp.take_along_axis(ends, jnp.maximum(owner - 1, 0), -1), 0)
        ids = columns.ids[_find(sums, at - before)]
        return jax.lax.psum(jnp.where(owner == jax.lax.axis_index(chunks.VOCAB), ids, 0), chunks.VOCAB)

    return _over_chunks(of_chunk, head, uniforms, legal, chunk, mesh)


def _find(sums: jax.Array, at: jax.Array) -> jax.Array:
    """[..., v] ascending, [..., N] -> int32 [..., N], the first place whose sum is above; never one without mass."""
    first, above = jnp.searchsorted, functools.partial(jnp.searchsorted, side="right")
    for _ in range(sums.ndim - 1):
        first, above = jax.vmap(first), jax.vmap(above)
    return jnp.minimum(above(sums, at), first(sums, sums[..., -1:]))


def _over_chunks(
    of_chunk: Callable[[jax.Array, Any, Columns], Any],
    head: Head,
    tokens: Any,
    legal: jax.Array,
    chunk: int,
    mesh: Mesh | None,
) -> Any:
    """Runs `of_chunk` on the logits of every chunk and joins its arrays [b, C, ...] to [B, T, ...].

    Args:
      of_chunk: takes logits float32 [b, C, v], -inf for ids that are not legal, a part of `tokens`, and the columns.
      head: the decoder's output.
      tokens: tree of arrays [B, T, ...].
      legal: bool [V].
      chunk: C.
      mesh: None: one device.
    """
    head = head.cast()

    def device(head: Head, tokens: Any, legal: jax.Array) -> Any:
        rows, kernel, columns = head.hidden.shape[0], head.kernel, chunks.all_columns(head.kernel, legal)
        if split_mesh is not None:
            kernel, columns = chunks.own_columns(kernel, legal, split_mesh)
        own_head = dataclasses.replace(head, kernel=kernel)

        def body(_: None, xs: Any) -> tuple[None, Any]:
            if split_mesh is not None:
                xs = jax.lax.all_gather(xs, chunks.GATHERED, axis=0, tiled=True)
            hidden, own = xs
            found = of_chunk(columns.masked(own_head.logits(hidden)), own, columns)
            if split_mesh is not None:
                first = rows * jax.lax.axis_index(chunks.GATHERED)
                found = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, rows, 0), found)
            return None, found

        split = functools.partial(blocks.split, block=min(chunk, head.hidden.shape[1]))
        _, found = jax.lax.scan(body, None, jax.tree.map(split, (head.hidden, tokens)))
        return jax.tree.map(lambda x: blocks.join(x, head.hidden.shape[1]), found)

    split_mesh = mesh if mesh is not None and mesh.size > 1 else None
    if split_mesh is None:
        return device(head, tokens, legal)
    by_token = P(mesh_lib.ROWS, mesh_lib.TOKENS)
    return jax.shard_map(
        device,
        mesh=split_mesh,
        in_specs=(dataclasses.replace(head, hidden=by_token, kernel=chunks.PLACED), by_token, P()),
        out_specs=by_token,
        check_vma=False,
    )(head, tokens, legal)
