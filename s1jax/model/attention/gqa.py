"""Grouped-query attention with rotary positions, over whole rows or over the KV cache.

Axis letters: B batch, T length, D model, N query heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from s1jax.config.layers import GQA
from s1jax.model import cache as cache_lib
from s1jax.model import rope
from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.cached import AttendCached
from s1jax.model.attention.dispatch import Attend
from s1jax.model.linear import Projection, apply_all
from s1jax.model.norms import RMSNorm


class Sinks(nnx.Module):
    """A logit of each query head that takes part in the softmax and is dropped, [N]."""

    def __init__(self, num_heads: int, dtype: DTypeLike):
        self.logits = nnx.Param(jnp.zeros((num_heads,), dtype))


class GroupedQueryAttention(nnx.Module):
    """The attention of one layer: projections, norms, rotation; the kernel that attends is handed in."""

    def __init__(
        self,
        spec: GQA,
        d_model: int,
        norm_eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        norm_offset: bool = False,
    ):
        self.rule, self.rope, self.position_scaling = rule_lib.of(spec), spec.rope, spec.position_scaling
        d, n, k, h = d_model, spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.query = Projection((d,), (n, h), dtype, rngs, spec.qkv_bias)
        self.key = Projection((d,), (k, h), dtype, rngs, spec.qkv_bias)
        self.value = Projection((d,), (k, h), dtype, rngs, spec.qkv_bias)
        self.out = Projection((n, h), (d,), dtype, rngs, spec.out_bias)
        self.sinks = Sinks(n, dtype) if spec.sinks else None
        sizes = (n * h, k * h) if spec.qk_norm_whole else (h, h)
        has_norms = spec.qk_norm or spec.qk_norm_whole
        self.query_norm, self.key_norm = (
            RMSNorm(size, norm_eps, dtype, norm_offset) if has_norms else None for size in sizes
        )

    def __call__(
        self,
        x: jax.Array,
        positions: rope.Positions,
        segment_ids: jax.Array,
        attend: Attend,
        merge_batch_and_seq: bool,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]; every token sees its own segment up to itself."""
        q, k, v = self._qkv(x, positions, merge_batch_and_seq)
        attended = attend(q, k, v, segment_ids, rule=self.rule, sinks=self._sinks())
        return self.out(attended, merge_batch_and_seq)

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
        attended, pages = attend(*self._qkv(x, positions), pages, layer, new, rule=self.rule, sinks=self._sinks())
        return self.out(attended), pages

    def _qkv(
        self, x: jax.Array, positions: rope.Positions, merge_batch_and_seq: bool = True
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] -> rotated queries [B, T, N, H], rotated keys and values [B, T, K, H]."""
        projected = apply_all((self.query, self.key, self.value), x, merge_batch_and_seq)
        q, k, v = (checkpoint_name(one, "projections") for one in projected)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = _over_heads(self.query_norm, q), _over_heads(self.key_norm, k)
        q, k = positions.rotate(q, self.rope), positions.rotate(k, self.rope)
        if self.position_scaling and positions.growth is not None:
            q = q * (1 + self.position_scaling * positions.growth).astype(q.dtype)
        return q, k, v

    def _sinks(self) -> jax.Array | None:
        """[N]."""
        return None if self.sinks is None else self.sinks.logits[...]


def _over_heads(norm: RMSNorm, x: jax.Array) -> jax.Array:
    """Of [B, T, heads, H], over H or over all heads at once, as many numbers as the norm has."""
    return norm(x.reshape(*x.shape[:2], -1, norm.size)).reshape(x.shape)
