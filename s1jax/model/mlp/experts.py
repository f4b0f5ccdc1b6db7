"""A mixture of experts in place of a layer's MLP.

Axis letters: B batch, T length, D model, F hidden width, E experts, k experts of a token.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.layers import Experts
from s1jax.model.layouts import InStack
from s1jax.model.linear import INIT_STD, Projection
from s1jax.model.mlp import grouped
from s1jax.model.mlp.dense import SwiGLU
from s1jax.model.mlp.expert_weights import ExpertWeights
from s1jax.model.mlp.router import Load, Router, load, route


class ExpertProjection(nnx.Module):
    """One kernel for each expert, with an optional bias for each."""

    def __init__(self, spec: Experts, inputs: int, out: int, dtype: DTypeLike, rngs: nnx.Rngs):
        shape = (spec.num_experts, inputs, out)
        self.kernel = nnx.Param(INIT_STD * jax.random.truncated_normal(rngs.params(), -3, 3, shape, dtype))
        self.bias = nnx.Param(jnp.zeros((spec.num_experts, out), dtype)) if spec.expert_bias else None


class ExpertProjections(nnx.Module):
    """The three projections of all experts."""

    def __init__(self, spec: Experts, d_model: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate = ExpertProjection(spec, d_model, spec.hidden, dtype, rngs)
        self.up = ExpertProjection(spec, d_model, spec.hidden, dtype, rngs)
        self.down = ExpertProjection(spec, spec.hidden, d_model, dtype, rngs)

    def weights(self) -> ExpertWeights:
        """All of them as one tree."""
        three = self.gate, self.up, self.down
        arrays: list[Any] = [one.kernel.get_value() for one in three]
        arrays += [None if one.bias is None else one.bias.get_value() for one in three]
        if not isinstance(arrays[0], InStack):
            return ExpertWeights(*arrays)
        arrays = [one.stack if isinstance(one, InStack) else one for one in arrays] + [arrays[0].layer]
        return ExpertWeights(*arrays)


class MixtureOfExperts(nnx.Module):
    """Router and experts, with an expert that every token passes if the spec has one."""

    def __init__(self, spec: Experts, d_model: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spec = spec
        self.router = Router(spec, d_model, dtype, rngs)
        self.experts = ExpertProjections(spec, d_model, dtype, rngs)
        self.shared = SwiGLU(d_model, spec.shared_hidden, dtype, rngs) if spec.shared_hidden else None
        self.shared_gate = Projection((d_model,), (1,), dtype, rngs) if spec.shared_gate else None

    def __call__(
        self,
        x: jax.Array,
        mlp_chunks: int = 1,
        merge_batch_and_seq: bool = True,
        apply: grouped.Apply = grouped.apply,
    ) -> jax.Array:
        """Applies the layer.

        Args:
          x: [B, T, D].
          mlp_chunks: not used: a token's hidden values are k F numbers, fewer than those of a dense MLP of its size.
          merge_batch_and_seq: see `s1jax.model.linear.Projection`.
          apply: computes the chosen experts, see `s1jax.model.mlp.grouped.Apply`.

        Returns:
          [B, T, D] in the dtype of `x`.
        """
        return self._run(x, self.router(x), merge_batch_and_seq, apply)[0]

    def with_load(
        self, x: jax.Array, valid: jax.Array, merge_batch_and_seq: bool, apply: grouped.Apply
    ) -> tuple[jax.Array, Load]:
        """As a call, and how the tokens that are `valid`, bool [B, T], are spread over the experts."""
        logits = self.router(x)
        y, ids = self._run(x, logits, merge_batch_and_seq, apply)
        return y, load(logits, ids, valid)

    def _run(
        self, x: jax.Array, logits: jax.Array, merge_batch_and_seq: bool, apply: grouped.Apply
    ) -> tuple[jax.Array, jax.Array]:
        """The output, and the experts int32 [B, T, k] of every token."""
        weights, ids = route(logits, self.spec, self.router.selection())
        y = apply(x, weights, ids, self.experts.weights(), self.spec.activation)
        if self.shared is None:
            return y, ids
        shared = self.shared(x, 1, merge_batch_and_seq)
        if self.shared_gate is not None:
            shared = shared * jax.nn.sigmoid(self.shared_gate(x, merge_batch_and_seq))
        return y + shared, ids
