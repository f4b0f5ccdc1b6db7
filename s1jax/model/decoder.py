"""The decoder: embedding, layers, final norm and logits, over whole rows or over the KV cache.

The spec of a layer defines what it computes (`s1jax.config.model`). Weights are the tree of `s1jax.model.params`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from s1jax.config import remat as remat_config
from s1jax.config.layers import Layer
from s1jax.config.model import ModelConfig, Stack
from s1jax.errors import UserError
from s1jax.model import block, layouts, linear, norms, rope
from s1jax.model import cache as cache_lib
from s1jax.model import remat as remat_lib
from s1jax.model.adapters import Adapters, attach
from s1jax.model.attention import cached as cached_lib
from s1jax.model.attention import dispatch, rule
from s1jax.model.embedding import Lookup, embed, lookup
from s1jax.model.layouts import Params, Unstacked
from s1jax.model.mlp import grouped
from s1jax.model.mlp.router import Load
from s1jax.model.params import abstract_params as abstract_params
from s1jax.model.params import init_params as init_params
from s1jax.model.params import logical_axes as logical_axes

# (spec, weights, x [B, T, D], pages, index of the layer in stacked pages) -> x, pages.
_CachedLayer = Callable[
    [Layer, Params, jax.Array, cache_lib.Pages, jax.Array | int | None], tuple[jax.Array, cache_lib.Pages]
]
_Carry = tuple[jax.Array, cache_lib.Pages, jax.Array | int]


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    attend: dispatch.Attend = dispatch.attend,
    lookup: Lookup = lookup,
    mlp_chunks: int = 1,
    merge_batch_and_seq: bool = True,
    grad_accumulators: Params | None = None,
    adapters: Adapters | None = None,
    experts: grouped.Apply = grouped.apply,
) -> jax.Array:
    """Runs whole rows, as in training.

    Args:
      params: tree of `s1jax.model.params`, layers stacked.
      config: shape of the decoder.
      tokens: int32 [B, T].
      positions: int32 [B, T], restarting at 0 in every segment.
      segment_ids: int32 [B, T], 0 for padding.
      dtype: of activations; weights are cast to it where they are used.
      remat: what is kept of the layers for the backward pass, see `s1jax.config.remat` and `s1jax.model.remat`.
      attend: attention, see `s1jax.model.attention.dispatch.Attend`.
      lookup: rows of the embedding, see `s1jax.model.embedding.Lookup`.
      mlp_chunks: chunks of F that the MLP computes one after the other, so that it never holds more hidden values.
      merge_batch_and_seq: see `s1jax.model.linear.Projection`; False if B and T are both split among devices.
      grad_accumulators: the layers' trees of `params` with arrays that the layers' gradients are added to, see
        `s1jax.model.remat.add_gradients`. With `adapters`, trees of theirs.
      adapters: of some of the projections. The gradients are then those of the adapters; `params` are frozen.
      experts: the product of chosen experts, see `s1jax.model.mlp.grouped.Apply`.

    Returns:
      Hidden states after the final norm, [B, T, D].

    Raises:
      UserError: if T exceeds `config.context_length`.
    """
    return forward_with_load(
        params,
        config,
        tokens,
        positions,
        segment_ids,
        dtype=dtype,
        remat=remat,
        attend=attend,
        lookup=lookup,
        mlp_chunks=mlp_chunks,
        merge_batch_and_seq=merge_batch_and_seq,
        grad_accumulators=grad_accumulators,
        adapters=adapters,
        experts=experts,
        with_load=False,
    )[0]


def forward_with_load(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    attend: dispatch.Attend = dispatch.attend,
    lookup: Lookup = lookup,
    mlp_chunks: int = 1,
    merge_batch_and_seq: bool = True,
    grad_accumulators: Params | None = None,
    adapters: Adapters | None = None,
    experts: grouped.Apply = grouped.apply,
    with_load: bool = True,
) -> tuple[jax.Array, Load | None]:
    """As `forward`, and how its tokens are spread over the experts of each layer that has them, [L, E].

    Layers are in the order of `ModelConfig.stacks`. None: no layer has experts, or `with_load` is off.
    """
    if tokens.shape[1] > config.context_length:
        raise UserError(
            f"a row of {tokens.shape[1]} tokens exceeds the model's context_length {config.context_length}; "
            "shorten the rows or raise model.context_length."
        )
    shared = rope.positions_of(positions, config, lambda: _segment_lengths(positions, segment_ids)), segment_ids
    scale = 0.0 if adapters is None else adapters.scale
    loads: list[Load] = []
    policies = remat_config.by_layer(remat, config.num_layers)
    x = _embed(params, config, tokens, dtype, lookup)
    for stacks in config.stacks_of_groups():

        def run(
            x: jax.Array,
            weights: tuple[Params, ...],
            shared: tuple[rope.Positions, jax.Array],
            frozen: tuple[Params, ...] | None,
            stacks: list[Stack] = stacks,
        ) -> tuple[jax.Array, tuple[Load | None, ...]]:
            positions, segment_ids = shared
            if frozen is not None:
                weights = tuple(attach(base, its, scale) for base, its in zip(frozen, weights, strict=True))
            its_loads = []
            for stack, one in zip(stacks, weights, strict=True):
                layer = _bind(stack.layer, config, one)
                x, load = layer(x, positions, segment_ids, attend, mlp_chunks, merge_batch_and_seq, experts, with_load)
                x = checkpoint_name(x, "layer")
                its_loads.append(load)
            return x, tuple(its_loads)

        names = [stack.name for stack in stacks]
        weights, frozen = tuple(params[name] for name in names), None
        if adapters is not None:
            weights, frozen = tuple(adapters.tree.get(name, {}) for name in names), weights
        sums = None if grad_accumulators is None else tuple(grad_accumulators.get(name, {}) for name in names)
        first, width = stacks[0].numbers[0], len(stacks)
        own = policies[first : first + width * len(stacks[0].numbers) : width]
        x, found = remat_lib.scan(run, x, weights, shared, own, sums, frozen)
        loads += [load for load in found if load is not None]
    load = jax.tree.map(lambda *parts: jnp.concatenate(parts), *loads) if loads else None
    return _final_norm(params, config, x), load


def forward_cached(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    cache: cache_lib.Cache,
    num_tokens: jax.Array,
    *,
    dtype: DTypeLike = jnp.float32,
    attend: cached_lib.AttendCached = cached_lib.attend_cached,
    experts: grouped.Apply = grouped.apply,
) -> tuple[jax.Array, cache_lib.Cache]:
    """Runs new tokens against the cache, as in prefill (T > 1) and decode steps (T = 1).

    The first num_tokens[b] tokens of sequence b take the positions from cache.lengths[b] on. The remaining
    tokens are padding: they are not written to the cache, and their outputs are undefined.

    Args:
      params: tree of `s1jax.model.params`, or its quantised (`s1jax.model.quant`) or unstacked form
        (`s1jax.model.layouts`).
      config: shape of the decoder.
      tokens: int32 [B, T].
      cache: of the same batch, with pages for the tokens in its table. Its pages may be `Unstacked` if the layers of
        `params` are.
      num_tokens: int32 [B], 0..T.
      dtype: of activations.
      attend: attention, see `s1jax.model.attention.cached.attend_cached`.
      experts: the product of chosen experts, see `s1jax.model.mlp.grouped.Apply`.

    Returns:
      Hidden states after the final norm [B, T, D], and the cache with the tokens appended.
    """
    places = cache.lengths[:, None] + jnp.arange(tokens.shape[1])
    positions = rope.positions_of(places, config, lambda: _limits(cache)[:, None])
    new = cache_lib.NewTokens(cache.table, cache.lengths, num_tokens)

    def layer(
        spec: Layer, weights: Params, x: jax.Array, pages: cache_lib.Pages, index: jax.Array | int | None
    ) -> tuple[jax.Array, cache_lib.Pages]:
        return _bind(spec, config, weights).cached(x, positions, attend, pages, index, new, experts)

    x = _embed(params, config, tokens, dtype, lookup)
    pages: cache_lib.Pages | Unstacked[cache_lib.Pages]
    if isinstance(params["layers"], Unstacked):
        x, pages = _run_unstacked(layer, params, config, x, cache.pages)
    else:
        assert isinstance(cache.pages, cache_lib.Pages)
        x, pages = _run_stacked(layer, params, config, x, cache.pages)
    hidden = _final_norm(params, config, x)
    return hidden, dataclasses.replace(cache, pages=pages, lengths=cache.lengths + num_tokens)


def _run_stacked(
    layer: _CachedLayer, params: Params, config: ModelConfig, x: jax.Array, pages: cache_lib.Pages
) -> tuple[jax.Array, cache_lib.Pages]:
    """The layers of `forward_cached` over stacked weights and pages, one scan a group."""
    index: int | jax.Array = 0
    for stacks in config.stacks_of_groups():
        whole = tuple(params[stack.name] for stack in stacks)

        def body(
            carry: _Carry,
            own: tuple[tuple[Params, ...], jax.Array],
            stacks: list[Stack] = stacks,
            whole: tuple[Params, ...] = whole,
        ) -> tuple[_Carry, None]:
            x, pages, index = carry
            weights, repeat = own
            for stack, one, all_ in zip(stacks, weights, whole, strict=True):
                x, pages = layer(stack.layer, layouts.with_experts(one, all_, repeat), x, pages, index)
                index = index + 1
            return (x, pages, index), None

        repeats = jnp.arange(len(stacks[0].numbers), dtype=jnp.int32)
        cut = tuple(map(layouts.without_experts, whole))
        (x, pages, index), _ = jax.lax.scan(body, (x, pages, index), (cut, repeats))
    return x, pages


def _run_unstacked(
    layer: _CachedLayer,
    params: Params,
    config: ModelConfig,
    x: jax.Array,
    pages: cache_lib.Pages | Unstacked[cache_lib.Pages],
) -> tuple[jax.Array, cache_lib.Pages | Unstacked[cache_lib.Pages]]:
    """The layers of `forward_cached` over unstacked weights; the pages are stacked or not."""
    compiled = jax.jit(layer, static_argnums=0)  # equal layers are traced and lowered once; the compiler inlines them
    own: list[cache_lib.Pages] = []
    for index, (spec, weights) in enumerate(zip(config.layers(), params["layers"].layers, strict=True)):
        if isinstance(pages, Unstacked):
            x, its = compiled(spec, weights, x, pages.layers[index], None)
            own.append(its)
        else:
            x, pages = compiled(spec, weights, x, pages, jnp.int32(index))
    return x, Unstacked(tuple(own)) if isinstance(pages, Unstacked) else pages


def _bind(spec: Layer, config: ModelConfig, weights: Params) -> block.Block:
    return block.bind(spec, config.d_model, config.norm_eps, weights, config.norm_offset)


def _final_norm(params: Params, config: ModelConfig, x: jax.Array) -> jax.Array:
    return norms.rms_norm(x, params["final_norm"]["scale"], config.norm_eps, config.norm_offset)


def _embed(params: Params, config: ModelConfig, tokens: jax.Array, dtype: DTypeLike, lookup: Lookup) -> jax.Array:
    x = embed(params["embed"]["embedding"], tokens, dtype, lookup)
    # As transformers' Gemma: 55.43 for D 3072 becomes 55.5 in bfloat16.
    return x * jnp.asarray(config.d_model**0.5, x.dtype) if config.scale_embeddings else x


def _segment_lengths(positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """int32 [B, T], of each token's segment; positions [B, T] restart in every segment, whose ids are at most T."""
    rows = jnp.arange(positions.shape[0])[:, None]
    lengths = jnp.zeros((positions.shape[0], positions.shape[1] + 1), jnp.int32)
    lengths = lengths.at[rows, segment_ids].max(jnp.broadcast_to(positions, segment_ids.shape).astype(jnp.int32) + 1)
    return jnp.take_along_axis(lengths, segment_ids, axis=1)


def _limits(cache: cache_lib.Cache) -> jax.Array:
    if cache.limits is None:
        raise ValueError("the cache has no limits; longrope chooses its frequencies by them")
    return cache.limits


def output_kernel(params: Params, config: ModelConfig) -> jax.Array:
    """The output projection [D, V] of unquantised weights; the transposed embedding if the two are tied."""
    return params["embed"]["embedding"].T if config.tied_embeddings else params["head"]["kernel"]


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32 [..., V], capped; training computes them in chunks (`s1jax.training.losses.chunks`)."""
    tied = config.tied_embeddings
    weight = params["embed"]["embedding"] if tied else params["head"]["kernel"]
    return rule.capped(linear.output_logits(hidden, weight, tied), config.final_softcap)
