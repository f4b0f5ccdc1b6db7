"""The weights of a layer's experts, and the activation between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from s1jax.model.linear import Adapted, BatchAdapted, Weight

Activation = Literal["silu", "clamped"]
_LIMIT, _SLOPE = 7.0, 1.702  # of gpt-oss's activation
_T = TypeVar("_T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowAdapters:
    """Which of A adapters each of R tokens has.

    Attributes:
      chosen: int32 [R]; 0 for a token without an adapter.
      scale: float32 [R], of the adapter's product; 0 for a token without one.
      count: A.
    """

    chosen: jax.Array
    scale: jax.Array
    count: int = dataclasses.field(metadata={"static": True})


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

    def of_rows(self, tokens: int) -> tuple[ExpertWeights, RowAdapters | None]:
        """The same without `BatchAdapted`, for `tokens` rows of its sequences.

        Kernels with adapters become `Adapted` with arrays [E, A, D, R] and [E, A, R, F]. The second result says which
        of them a row has; None: the rows have none, and any `Adapted` is that of all rows.
        """
        kernels = {"gate": self.gate, "up": self.up, "down": self.down}
        several = {name: one for name, one in kernels.items() if isinstance(one, BatchAdapted)}
        if not several:
            return self, None
        one = next(iter(several.values()))
        chosen, scales = one.chosen, one.scales
        plain: dict[str, Any]
        if chosen is None:
            plain = {name: one.weight for name, one in several.items()}
            return dataclasses.replace(self, **plain), None
        if self.layer is not None:
            chosen, scales = chosen[0], scales[0]  # all layers have the same
        chosen = jnp.repeat(chosen, tokens // len(chosen))
        index = jnp.maximum(chosen, 0)
        plain = {name: Adapted(one.weight, one.a, one.b, 1.0) for name, one in several.items()}
        rows = RowAdapters(index, jnp.where(chosen < 0, 0, scales[index]), len(scales))
        return dataclasses.replace(self, **plain), rows

    @property
    def are_arrays(self) -> bool:
        """Whether the kernels are arrays, adapters aside."""
        return all(isinstance(base(kernel), jax.Array) for kernel in (self.gate, self.up, self.down))


def base(weight: Weight) -> Weight:
    """The weight without its adapter."""
    return weight.weight if isinstance(weight, Adapted) else weight


def of_expert(weights: _T, expert: jax.Array, adapter: jax.Array | None = None) -> _T:
    """The weights of one expert, in the same types without the axis E.

    Args:
      weights: tree of arrays with an axis E first.
      expert: int32 scalar; of another shape, that is put in place of E.
      adapter: int32 like `expert`, which adapter of each `Adapted` is taken, as `ExpertWeights.of_rows` returns them;
        None: there is one.
    """

    def take(a: jax.Array, index: jax.Array) -> jax.Array:
        return a[index] if index.ndim else jax.lax.dynamic_index_in_dim(a, index, keepdims=False)

    def one(leaf: jax.Array | Adapted) -> jax.Array | Adapted:
        if not isinstance(leaf, Adapted) or adapter is None:
            return jax.tree.map(lambda a: take(a, expert), leaf)
        a, b = (take(a, expert * leaf.a.shape[1] + adapter) for a in (joined(leaf.a), joined(leaf.b)))
        return Adapted(of_expert(leaf.weight, expert), a, b, leaf.scale)

    return jax.tree.map(one, weights, is_leaf=lambda leaf: isinstance(leaf, Adapted))


def joined(a: jax.Array) -> jax.Array:
    """[E, A, ...] -> [E A, ...]."""
    return a.reshape(-1, *a.shape[2:])


def adapted(
    rows: jax.Array,
    weight: Adapted,
    scale: jax.Array | None,
    product: Callable[[jax.Array, Weight], jax.Array],
    low: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The product of rows [..., D] with a weight that has an adapter.

    Args:
      rows: [..., D].
      weight: of their experts.
      scale: [..., 1], of each row's adapter; None: that of the weight alone.
      product: of rows with a weight without adapter.
      low: of rows with a factor of the adapter.
    """
    inner = low(rows, weight.a)
    if scale is not None:
        inner = inner * scale.astype(inner.dtype)
    return product(rows, weight.weight) + weight.scale * low(inner.astype(rows.dtype), weight.b)


def activate(gate: jax.Array, up: jax.Array, activation: Activation) -> jax.Array:
    """Hidden values from gate and up [..., F], see `s1jax.config.layers.Experts`."""
    if activation == "silu":
        return jax.nn.silu(gate) * up
    gate, up = jnp.minimum(gate, _LIMIT), jnp.clip(up, -_LIMIT, _LIMIT)
    return gate * jax.nn.sigmoid(_SLOPE * gate) * (up + 1)
