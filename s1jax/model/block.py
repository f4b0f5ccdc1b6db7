"""One decoder layer, with norms of what goes into attention and MLP, of what comes out of them, or of both."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from s1jax.config.layers import Layer
from s1jax.model import cache as cache_lib
from s1jax.model import rope
from s1jax.model.attention.build import build as build_attention
from s1jax.model.attention.cached import AttendCached
from s1jax.model.attention.dispatch import Attend
from s1jax.model.layouts import Params
from s1jax.model.mlp import grouped
from s1jax.model.mlp.build import build as build_mlp
from s1jax.model.mlp.experts import MixtureOfExperts
from s1jax.model.mlp.router import Load
from s1jax.model.norms import RMSNorm


class Block(nnx.Module):
    """Attention and MLP, each added to its input; axis letters: B batch, T length, D model."""

    def __init__(
        self,
        spec: Layer,
        d_model: int,
        norm_eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        norm_offset: bool = False,
    ):
        def norm(needed: bool) -> RMSNorm | None:
            return RMSNorm(d_model, norm_eps, dtype, norm_offset) if needed else None

        before, after = spec.norms != "post", spec.norms != "pre"
        self.attention_norm, self.attention_out_norm = norm(before), norm(after)
        self.mlp_norm, self.mlp_out_norm = norm(before), norm(after)
        self.attention = build_attention(spec.attention, d_model, norm_eps, dtype, rngs, norm_offset)
        self.mlp = build_mlp(spec.mlp, d_model, dtype, rngs)

    def __call__(
        self,
        x: jax.Array,
        positions: rope.Positions,
        segment_ids: jax.Array,
        attend: Attend,
        mlp_chunks: int,
        merge_batch_and_seq: bool,
        experts: grouped.Apply = grouped.apply,
        with_load: bool = False,
    ) -> tuple[jax.Array, Load | None]:
        """[B, T, D] -> [B, T, D]; every token sees its own segment up to itself.

        With `with_load` the second result says how tokens are spread over experts, where the layer has them.
        """
        normed = _maybe(self.attention_norm, x)
        attended = self.attention(normed, positions, segment_ids, attend, merge_batch_and_seq)
        x = x + _maybe(self.attention_out_norm, checkpoint_name(attended, "projections"))
        h, load = _maybe(self.mlp_norm, x), None
        if not isinstance(self.mlp, MixtureOfExperts):
            y = self.mlp(h, mlp_chunks, merge_batch_and_seq)
        elif with_load:
            y, load = self.mlp.with_load(h, segment_ids > 0, merge_batch_and_seq, experts)
        else:
            y = self.mlp(h, mlp_chunks, merge_batch_and_seq, experts)
        return x + _maybe(self.mlp_out_norm, y), load

    def cached(
        self,
        x: jax.Array,
        positions: rope.Positions,
        attend: AttendCached,
        pages: cache_lib.Pages,
        layer: jax.Array | int | None,
        new: cache_lib.NewTokens,
        experts: grouped.Apply = grouped.apply,
    ) -> tuple[jax.Array, cache_lib.Pages]:
        """Appends the tokens of `x` [B, T, D] to layer `layer` of stacked pages, or to the layer's own, and attends."""
        normed = _maybe(self.attention_norm, x)
        attended, pages = self.attention.cached(normed, positions, attend, pages, layer, new)
        x = x + _maybe(self.attention_out_norm, attended)
        h = _maybe(self.mlp_norm, x)
        y = self.mlp(h, apply=experts) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(h)
        return x + _maybe(self.mlp_out_norm, y), pages


def _maybe(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


@functools.cache
def _structure(spec: Layer, d_model: int, norm_eps: float, norm_offset: bool) -> tuple[nnx.GraphDef, nnx.State]:
    """One layer without weights."""

    def build() -> Block:
        return Block(spec, d_model, norm_eps, jnp.dtype(jnp.float32), nnx.Rngs(params=0), norm_offset)

    return nnx.split(nnx.eval_shape(build), nnx.Param)


def bind(spec: Layer, d_model: int, norm_eps: float, weights: Params, norm_offset: bool = False) -> Block:
    """One layer over the weights of its tree, whose kernels may have any type of `s1jax.model.linear.Weight`."""
    graph, state = _structure(spec, d_model, norm_eps, norm_offset)
    state = jax.tree.map(lambda x: x, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, dict(weights))
    return nnx.merge(graph, state)
