"""One pre-norm decoder layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.layers import Layer
from s1jax.model import cache as cache_lib
from s1jax.model import rope
from s1jax.model.attention.build import build as build_attention
from s1jax.model.attention.cached import AttendCached
from s1jax.model.attention.dispatch import Attend
from s1jax.model.layouts import Params
from s1jax.model.mlp.build import build as build_mlp
from s1jax.model.norms import RMSNorm


class Block(nnx.Module):
    """Attention and MLP, each after a norm and added to its input; axis letters: B batch, T length, D model."""

    def __init__(self, spec: Layer, d_model: int, norm_eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(d_model, norm_eps, dtype)
        self.attention = build_attention(spec.attention, d_model, norm_eps, dtype, rngs)
        self.mlp_norm = RMSNorm(d_model, norm_eps, dtype)
        self.mlp = build_mlp(spec.mlp, d_model, dtype, rngs)

    def __call__(
        self,
        x: jax.Array,
        positions: rope.Positions,
        segment_ids: jax.Array,
        attend: Attend,
        mlp_chunks: int,
        merge_batch_and_seq: bool,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]; every token sees its own segment up to itself."""
        x = x + self.attention(self.attention_norm(x), positions, segment_ids, attend, merge_batch_and_seq)
        return x + self.mlp(self.mlp_norm(x), mlp_chunks, merge_batch_and_seq)

    def cached(
        self,
        x: jax.Array,
        positions: rope.Positions,
        attend: AttendCached,
        pages: cache_lib.Pages,
        layer: jax.Array | int | None,
        new: cache_lib.NewTokens,
    ) -> tuple[jax.Array, cache_lib.Pages]:
        """Appends the tokens of `x` [B, T, D] to layer `layer` of stacked pages, or to the layer's own, and attends."""
        attended, pages = self.attention.cached(self.attention_norm(x), positions, attend, pages, layer, new)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), pages


@functools.cache
def _structure(spec: Layer, d_model: int, norm_eps: float) -> tuple[nnx.GraphDef, nnx.State]:
    """One layer without weights."""

    def build() -> Block:
        return Block(spec, d_model, norm_eps, jnp.dtype(jnp.float32), nnx.Rngs(params=0))

    return nnx.split(nnx.eval_shape(build), nnx.Param)


def bind(spec: Layer, d_model: int, norm_eps: float, weights: Params) -> Block:
    """One layer over the weights of its tree, whose kernels may have any type of `s1jax.model.linear.Weight`."""
    graph, state = _structure(spec, d_model, norm_eps)
    state = jax.tree.map(lambda x: x, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, dict(weights))
    return nnx.merge(graph, state)
