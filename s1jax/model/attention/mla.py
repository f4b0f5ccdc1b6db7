"""Multi-head latent attention: over whole rows with the heads' keys and values, over the KV cache without them.

Axis letters: B batch, T length, D model, N heads, R kv_rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from s1jax.config.layers import MLA
from s1jax.model import cache as cache_lib
from s1jax.model import rope
from s1jax.model.attention import absorb
from s1jax.model.attention.cached import AttendCached
from s1jax.model.attention.dispatch import Attend
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.linear import Projection
from s1jax.model.norms import RMSNorm

_EPS = 1e-6  # of the norms of latent vectors, whatever the model's norm_eps (transformers' DeepseekV3Attention)


class LatentAttention(nnx.Module):
    """The attention of one layer (DeepSeek-V2, arXiv 2405.04434); the kernel that attends is handed in."""

    def __init__(self, spec: MLA, d_model: int, dtype: DTypeLike, rngs: nnx.Rngs):
        d, n = d_model, spec.num_heads
        if spec.q_rank:
            self.query_down = Projection((d,), (spec.q_rank,), dtype, rngs)
            self.query_down_norm = RMSNorm(spec.q_rank, _EPS, dtype)
            self.query_up = Projection((spec.q_rank,), (n, spec.head_dim), dtype, rngs)
        else:
            self.query = Projection((d,), (n, spec.head_dim), dtype, rngs)
        self.latent = Projection((d,), (spec.kv_rank + spec.rope_dim,), dtype, rngs)
        self.latent_norm = RMSNorm(spec.kv_rank, _EPS, dtype)
        self.key_up = Projection((spec.kv_rank,), (n, spec.nope_dim), dtype, rngs)
        self.value_up = Projection((spec.kv_rank,), (n, spec.value_dim), dtype, rngs)
        self.out = Projection((n, spec.value_dim), (d,), dtype, rngs)
        self.spec = spec

    def __call__(
        self,
        x: jax.Array,
        positions: rope.Positions,
        segment_ids: jax.Array,
        attend: Attend,
        merge_batch_and_seq: bool,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]; every token sees its own segment up to itself."""
        q = jnp.concatenate(self._queries(x, positions, merge_batch_and_seq), axis=-1)
        c, turned = self._latent(x, positions, merge_batch_and_seq)
        common = jnp.broadcast_to(turned, (*q.shape[:3], turned.shape[-1]))
        k, v = (_kept(up(c, merge_batch_and_seq)) for up in (self.key_up, self.value_up))
        k = jnp.concatenate([k, common], axis=-1)
        attended = attend(q, k, v, segment_ids, rule=self._rule(positions))
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
        """Appends the tokens of `x` [B, T, D] to layer `layer` of stacked pages, or to the layer's own, and attends.

        A token's key in the cache is its latent vector and its rotated key, [R + rope_dim] for all heads, and its value
        the first R numbers of that. Prefill does the same as decode steps: keys of the heads would have to be computed
        again for all tokens of the cache.
        """
        q, turned = self._queries(x, positions)
        q = jnp.concatenate([absorb.to_latent(q, self.key_up.weight()), turned], axis=-1)
        c, turned = self._latent(x, positions)
        k = jnp.concatenate([c[:, :, None], turned], axis=-1)
        mean, pages = attend(q, k, None, pages, layer, new, rule=self._rule(positions))
        return self.out(absorb.from_latent(mean, self.value_up.weight())), pages

    def _queries(
        self, x: jax.Array, positions: rope.Positions, merge_batch_and_seq: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """[B, T, D] -> queries [B, T, N, nope_dim] and [B, T, N, rope_dim], the latter rotated."""
        if self.spec.q_rank:
            q = self.query_down_norm(_kept(self.query_down(x, merge_batch_and_seq)))
            q = _kept(self.query_up(q, merge_batch_and_seq))
        else:
            q = _kept(self.query(x, merge_batch_and_seq))
        q, turned = jnp.split(q, [self.spec.nope_dim], axis=-1)
        return q, positions.rotate(turned, "global")

    def _latent(
        self, x: jax.Array, positions: rope.Positions, merge_batch_and_seq: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """[B, T, D] -> the latent vector [B, T, R] and the rotated key of all heads [B, T, 1, rope_dim]."""
        c, turned = jnp.split(_kept(self.latent(x, merge_batch_and_seq)), [self.spec.kv_rank], axis=-1)
        return self.latent_norm(c), positions.rotate(turned[:, :, None], "global")

    def _rule(self, positions: rope.Positions) -> AttentionRule:
        scale = self.spec.head_dim**-0.5 * positions.score_factor
        return AttentionRule(scale, value_dim=self.spec.kv_rank)


def _kept(x: jax.Array) -> jax.Array:
    """Named for `s1jax.model.remat`."""
    return checkpoint_name(x, "projections")
