"""The module that computes an MLP spec: the one place that chooses by its kind."""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.layers import Dense, Experts
from s1jax.model.mlp.dense import SwiGLU
from s1jax.model.mlp.experts import MixtureOfExperts


def build(spec: Dense | Experts, d_model: int, dtype: DTypeLike, rngs: nnx.Rngs) -> SwiGLU | MixtureOfExperts:
    """Makes the MLP of one layer, with random weights."""
    match spec:
        case Dense():
            return SwiGLU(d_model, spec.hidden, dtype, rngs, spec.activation)
        case Experts():
            return MixtureOfExperts(spec, d_model, dtype, rngs)
