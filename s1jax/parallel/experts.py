"""Experts on a mesh: every device computes its own for all tokens that its neighbours along `tensor` have as well.

Tokens are on all devices along `tensor`. Each of these devices has E / n whole experts, and the outputs are summed up.
So the result is exact, no token is dropped, and nothing but the sum is exchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from s1jax.model.linear import Adapted, BatchAdapted, Weight
from s1jax.model.mlp import grouped
from s1jax.model.mlp.expert_weights import Activation, ExpertWeights
from s1jax.parallel.mesh import ROWS, TOKENS, WIDTH, parts

_EXPERTS = "tensor"  # the mesh axis of the experts


def apply(mesh: Mesh | None, split_tokens: bool = True) -> grouped.Apply:
    """`s1jax.model.mlp.grouped.apply` on a mesh, for `s1jax.model.decoder`.

    Kernels of experts are gathered along the axes that split their width, as those of dense layers are, and their
    gradients scattered.

    Args:
      mesh: None: one device.
      split_tokens: rows of [B, T, D] are split along `sequence` as well, as in training; False: along `data` and `fsdp`
        alone, as in the engine.
    """
    if mesh is None:
        return grouped.apply
    on_device = functools.partial(grouped.apply, platform=mesh.devices.flat[0].platform, shares=mesh.shape[_EXPERTS])
    if mesh.size == 1:
        return on_device

    def on_mesh(
        x: jax.Array, weights: jax.Array, ids: jax.Array, experts: ExpertWeights, activation: Activation
    ) -> jax.Array:
        def device(x: jax.Array, weights: jax.Array, ids: jax.Array, experts: ExpertWeights) -> jax.Array:
            ids = ids - experts.count * jax.lax.axis_index(_EXPERTS)
            return jax.lax.psum(on_device(x, weights, ids, _gathered(experts, mesh), activation), _EXPERTS)

        tokens = PartitionSpec(ROWS, TOKENS) if split_tokens else PartitionSpec(ROWS)
        # Replication is checked by the tests, as in `s1jax.training.losses.cross_entropy`.
        return jax.shard_map(
            device,
            mesh=mesh,
            in_specs=(tokens, tokens, tokens, _specs(experts)),
            out_specs=tokens,
            check_vma=False,
        )(x, weights, ids, experts)

    return on_mesh


# Axis of a kernel [E, inputs, outputs] that is split along `WIDTH`: the model's width.
_WIDTH_AXIS = {"gate": 1, "up": 1, "down": 2}


def _specs(experts: ExpertWeights) -> ExpertWeights:
    """How the weights are split, as a tree of PartitionSpecs."""
    before = () if experts.layer is None else (None,)
    own = PartitionSpec(*before, _EXPERTS)

    def of(weight: Weight, axis: int) -> Any:
        if isinstance(weight, BatchAdapted):
            rows: Any = None if weight.chosen is None else PartitionSpec(*before, ROWS)
            its: Any = of(weight.weight, axis), own, own, PartitionSpec(), rows
            return BatchAdapted(*its)
        if isinstance(weight, Adapted):
            return dataclasses.replace(weight, weight=of(weight.weight, axis), a=own, b=own)  # type: ignore[arg-type]
        if isinstance(weight, jax.Array):
            return PartitionSpec(*before, _EXPERTS, *[None] * (axis - 1), WIDTH)
        return jax.tree.map(lambda _: own, weight)

    kernels: dict[str, Any] = {name: of(getattr(experts, name), axis) for name, axis in _WIDTH_AXIS.items()}
    biases: dict[str, Any] = {f"{name}_bias": None if experts.gate_bias is None else own for name in _WIDTH_AXIS}
    layer: Any = None if experts.layer is None else PartitionSpec()
    return dataclasses.replace(experts, **kernels, **biases, layer=layer)


def _gathered(experts: ExpertWeights, mesh: Mesh) -> ExpertWeights:
    """The experts of this device with kernels of the whole width."""
    if parts(mesh, WIDTH) == 1:
        return experts
    experts = experts.own_layer()

    def whole(weight: Weight, axis: int) -> Weight:
        if isinstance(weight, Adapted | BatchAdapted):
            return dataclasses.replace(weight, weight=whole(weight.weight, axis))
        if isinstance(weight, jax.Array):
            return jax.lax.all_gather(weight, WIDTH, axis=axis, tiled=True)
        return weight

    kernels: dict[str, Any] = {name: whole(getattr(experts, name), axis) for name, axis in _WIDTH_AXIS.items()}
    return dataclasses.replace(experts, **kernels)
