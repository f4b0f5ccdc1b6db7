"""The module that computes an attention spec: the one place that chooses by its kind."""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.layers import GQA, MLA
from s1jax.model.attention.gqa import GroupedQueryAttention
from s1jax.model.attention.mla import LatentAttention


def build(
    spec: GQA | MLA, d_model: int, norm_eps: float, dtype: DTypeLike, rngs: nnx.Rngs, norm_offset: bool = False
) -> GroupedQueryAttention | LatentAttention:
    """Makes the attention of one layer, with random weights."""
    match spec:
        case GQA():
            return GroupedQueryAttention(spec, d_model, norm_eps, dtype, rngs, norm_offset)
        case MLA():
            return LatentAttention(spec, d_model, dtype, rngs)
