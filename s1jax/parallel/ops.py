"""Attention, the embedding lookup and pages of the cache on a mesh, each as the decoder and the engine call it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.model import cache as cache_lib
from s1jax.model import embedding
from s1jax.model.attention import cached, dispatch
from s1jax.model.attention.rule import AttentionRule, needs
from s1jax.model.blocks import Part
from s1jax.parallel.mesh import ROWS, TOKENS, WIDTH
from s1jax.parallel.sharding import TABLE, key_head_shards, page_axes, page_sharding, places


def choose_attention(
    experiment: Experiment, model: ModelConfig, mesh: Mesh, platform: str
) -> tuple[Experiment, str | None]:
    """The experiment with the attention that runs on this mesh, and a sentence where it isn't what was asked for."""
    train, data = experiment.train, experiment.data
    packed = data.batching == "packed" or data.source == "countdown_corpus"  # which packs whatever it is asked for
    name, note = dispatch.choose(
        train.attention, platform, train.compute_dtype, packed, mesh.shape[TOKENS], model.head_dim, needs(model)
    )
    chosen: Any = name
    return dataclasses.replace(experiment, train=dataclasses.replace(train, attention=chosen)), note


def attend(mesh: Mesh, implementation: str) -> dispatch.Attend:
    """`s1jax.model.attention.dispatch.attend` on a mesh, for `s1jax.model.decoder.forward` on batches of `put_batch`.

    Each device has the queries of its rows, tokens and heads; keys and values of whole rows are gathered along
    `sequence`, and their gradients scattered. Where key heads do not divide along `tensor`, every device has them all
    and uses those of its query heads.
    """
    if mesh.size == 1:
        return functools.partial(dispatch.attend, implementation=implementation)
    shards, tensor = mesh.shape[TOKENS], mesh.shape["tensor"]

    def on_mesh(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        segment_ids: jax.Array,
        *,
        rule: AttentionRule | None = None,
        sinks: jax.Array | None = None,
    ) -> jax.Array:
        split_keys = key_head_shards(mesh, k.shape[2]) == tensor
        table = places(q.shape[1], shards)

        def device(
            q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sinks: jax.Array | None
        ) -> jax.Array:
            attend = functools.partial(dispatch.attend, implementation=implementation, rule=rule, sinks=sinks)
            if not split_keys:
                k, v = (_own_heads(x, q.shape[2], tensor) for x in (k, v))
            if shards == 1:
                return attend(q, k, v, segment_ids)
            k, v, whole_segment_ids = (_whole_rows(x, shards) for x in (k, v, segment_ids))
            part = Part(table, jax.lax.axis_index(TOKENS), whole_segment_ids)
            return attend(q, k, v, segment_ids, part=part)

        heads = PartitionSpec(ROWS, TOKENS, "tensor")
        keys = heads if split_keys else PartitionSpec(ROWS, TOKENS)
        # Replication is checked by the tests, as in `s1jax.training.losses.cross_entropy`.
        return jax.shard_map(
            device,
            mesh=mesh,
            in_specs=(heads, keys, keys, PartitionSpec(ROWS, TOKENS), PartitionSpec("tensor")),
            out_specs=heads,
            check_vma=False,
        )(q, k, v, segment_ids, sinks)

    return on_mesh


def lookup(mesh: Mesh) -> embedding.Lookup:
    """`s1jax.model.embedding.lookup` on a mesh, for `s1jax.model.decoder.forward` on batches of `put_batch`.

    Each device looks up its slice of the width and of the vocabulary for the tokens of all devices that have other
    slices, and hands the values over. Left to the compiler, the whole embedding is gathered where `sequence` splits
    rows, twice a micro-batch: 1.6 GB each of Qwen2.5-32B's.
    """
    if mesh.size == 1:
        return embedding.lookup

    def device(table: jax.Array, tokens: jax.Array) -> jax.Array:
        tokens = jax.lax.all_gather(tokens, WIDTH, axis=0, tiled=True) - table.shape[0] * jax.lax.axis_index(vocab)
        here = (tokens >= 0) & (tokens < table.shape[0])
        x = jnp.where(here[..., None], embedding.lookup(table, jnp.where(here, tokens, 0)), 0)
        return jax.lax.psum(jax.lax.all_to_all(x, WIDTH, split_axis=0, concat_axis=2, tiled=True), vocab)

    vocab = TABLE["vocab"]
    tokens = PartitionSpec(ROWS, TOKENS)
    # Replication is checked by the tests, as in `s1jax.training.losses.cross_entropy`.
    return jax.shard_map(
        device, mesh=mesh, in_specs=(PartitionSpec(vocab, WIDTH), tokens), out_specs=tokens, check_vma=False
    )


def attend_cached(
    mesh: Mesh | None, kv_heads: int, split_rows: bool, pages_at_once: int = 1, pages_in_place: bool = False
) -> cached.AttendCached:
    """`cached.attend_cached` on a mesh, for `s1jax.model.decoder.forward_cached` with stacked pages.

    Each device has the pages of its rows and heads, so nothing of the cache ever moves; a row's table counts the pages
    of its own devices.

    Args:
      mesh: None: one device.
      kv_heads: of the model.
      split_rows: rows are split along `data` and `fsdp`; False: every device has all of them, as in a prefill.
      pages_at_once: see there.
      pages_in_place: see there.
    """
    device = functools.partial(cached.attend_cached, pages_at_once=pages_at_once, pages_in_place=pages_in_place)
    if mesh is None:
        return device
    rows, heads = page_axes(mesh, kv_heads, split_rows)
    tokens, pages = PartitionSpec(rows, None, heads), page_sharding(mesh, kv_heads, split_rows).spec

    def on_mesh(
        q: jax.Array, *others: Any, rule: AttentionRule | None = None, sinks: jax.Array | None = None
    ) -> tuple[jax.Array, cache_lib.Pages]:
        # All query heads share one key head, which every device has: each computes its own of them.
        split = heads is None and kv_heads == 1 and q.shape[2] % mesh.shape["tensor"] == 0
        own = "tensor" if split else heads
        queries = PartitionSpec(rows, None, own)

        def with_rule(*args: Any) -> tuple[jax.Array, cache_lib.Pages]:
            *others, sinks = args
            return device(*others, rule=rule, sinks=sinks)

        return jax.shard_map(
            with_rule,
            mesh=mesh,
            in_specs=(queries, tokens, tokens, pages, PartitionSpec(), PartitionSpec(rows), PartitionSpec(own)),
            out_specs=(queries, pages),
            check_vma=False,
        )(q, *others, sinks)

    return on_mesh


def copy_page(mesh: Mesh | None, kv_heads: int) -> Callable[..., Any]:
    """`s1jax.model.cache.copy_page` on a mesh; `source` and `target` are int32 [row shards], of the pages of each."""

    def device(pages: Any, source: jax.Array, target: jax.Array) -> Any:
        return cache_lib.copy_page(pages, source[0], target[0])

    if mesh is None:
        return device
    spec = page_sharding(mesh, kv_heads, True).spec
    rows = PartitionSpec(ROWS)
    return jax.shard_map(device, mesh=mesh, in_specs=(spec, rows, rows), out_specs=spec, check_vma=False)


def _own_heads(x: jax.Array, queries: int, tensor: int) -> jax.Array:
    """Of all key or value heads [B, T, K, H], those of this device's query heads: one, or one for each of them."""
    group = queries * tensor // x.shape[2]
    first = jax.lax.axis_index("tensor") * queries
    if group % queries == 0:
        return jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2)
    return x[:, :, (first + jnp.arange(queries)) // group]


def _whole_rows(x: jax.Array, shards: int) -> jax.Array:
    """Gathers [B, T / shards, ...] into rows [B, T, ...] whose tokens are in order."""
    gathered = jax.lax.all_gather(x, TOKENS, axis=1, tiled=True)
    runs = jnp.split(gathered, 2 * shards, axis=1)  # of the devices in turn: an early one and a late one
    return jnp.concatenate([*runs[::2], *runs[::-2]], axis=1)
