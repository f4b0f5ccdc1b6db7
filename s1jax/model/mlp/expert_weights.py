"""The weights of a layer's experts, and the activation between them."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from s1jax.model.linear import Adapted, Weight

Activation = Literal["silu", "clamped"]
_LIMIT, _SLOPE = 7.0, 1.702  # of gpt-oss's activation
_T = TypeVar("_T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertWeights:
    """Kernels of E experts, and their biases.

    Attributes:
      gate: [E, D, F], as all kernels of any type of `s1jax.model.linear.Weight` with an axis E before its others. If
        `layer` is given, all arrays have an axis L before E.
      up: [E, D, F].
      down: [E, F, D].
      gate_bias: [E, F]; None: there is none.
      up_bias: [E, F].
      down_bias: [E, D].
      layer: int32 scalar, which of the stacked layers these are; None: they are not stacked.
    """

    gate: Weight
    up: Weight
    down: Weight
    gate_bias: jax.Array | None = None
    up_bias: jax.Array | None = None
    down_bias: jax.Array | None = None
    layer: jax.Array | None = None

    @property
    def count(self) -> int:
        """E."""
        count: int = jax.tree.leaves(self.gate)[0].shape[0 if self.layer is None else 1]
        return count

    def own_layer(self) -> ExpertWeights:
        """The same, cut out of the stack if they are stacked."""
        if self.layer is None:
            return self
        return of_expert(dataclasses.replace(self, layer=None), self.layer)

    def all_layers(self) -> tuple[ExpertWeights, jax.Array | int]:
        """The experts of all stacked layers in one axis L E, and the place of the layer's first one among them."""
        if self.layer is None:
            return self, 0
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), dataclasses.replace(self, layer=None))
        return flat, self.layer * self.count

    @property
    def are_arrays(self) -> bool:
        """Whether the kernels are arrays, adapters aside."""
        return all(isinstance(base(kernel), jax.Array) for kernel in (self.gate, self.up, self.down))


def base(weight: Weight) -> Weight:
    """The weight without its adapter."""
    return weight.weight if isinstance(weight, Adapted) else weight


def of_expert(weights: _T, expert: jax.Array) -> _T:
    """The weights of one expert, in the same types without the axis E."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, expert, keepdims=False), weights)


def activate(gate: jax.Array, up: jax.Array, activation: Activation) -> jax.Array:
    """Hidden values from gate and up [..., F], see `s1jax.config.layers.Experts`."""
    if activation == "silu":
        return jax.nn.silu(gate) * up
    gate, up = jnp.minimum(gate, _LIMIT), jnp.clip(up, -_LIMIT, _LIMIT)
    return gate * jax.nn.sigmoid(_SLOPE * gate) * (up + 1)
