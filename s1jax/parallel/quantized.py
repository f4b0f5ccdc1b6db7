"""Weights with projections of layers in few bits: shapes and places on a mesh, and how they are made from floats."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.model.layouts import map_kernels, num_input_axes
from s1jax.model.quant import KEPT
from s1jax.model.quant_groups import GroupQTensor, Kind, quantize_groups
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import sharding

# Inputs that share a scale, the first that divides a kernel's: a scale of 128 x 128 weights is also one of 32 inputs.
_GROUPS: dict[Kind, tuple[int, ...]] = {
    "int8": (64, 32), "int4": (32,), "nf4": (64, 32), "mxfp4": (32,), "fp8": (128, 64, 32)
}  # fmt: skip


def abstract(config: ModelConfig, kind: Kind, dtype: DTypeLike, mesh: Mesh) -> dict[str, Any]:
    """The tree of `quantize` as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      UserError: no group size of the kind divides the inputs of a projection, the kind is mxfp4 and the model has no
        experts, or as `sharding.shardings`.
    """
    shapes = decoder.abstract_params(config, jnp.dtype(dtype))
    places, axes = sharding.param_shardings(config, mesh), decoder.logical_axes(config)
    shapes = map_kernels(shapes, functools.partial(_abstract_kernel, config, kind))
    places = map_kernels(places, lambda path, place: _placed(path, place, shapes, axes, mesh))
    if kind == "mxfp4" and not any(isinstance(leaf, GroupQTensor) for leaf in _leaves(shapes)):
        raise UserError("mxfp4 is a type of the weights of experts, and the model has none; choose another type.")
    return sharding.with_shardings(shapes, places)


def quantize(
    params: Mapping[str, Any], config: ModelConfig, kind: Kind, dtype: DTypeLike, mesh: Mesh
) -> dict[str, Any]:
    """Places weights on a mesh with the projections of layers in few bits.

    A device has the floats of one layer of one projection at a time, beside what is in few bits already. Routers, the
    gate of a shared expert and the projections that MLA absorbs stay floats; mxfp4 is of experts alone, as gpt-oss
    publishes them.

    Args:
      params: tree of `s1jax.model.params` in numpy or jax arrays, in the dtype that the codes are made from.
      config: of the model.
      kind: of the codes.
      dtype: of the other weights.
      mesh: of `s1jax.parallel.mesh`.

    Returns:
      The tree with a `GroupQTensor` for each of these projections; scales of int8, int4 and nf4 are bfloat16.

    Raises:
      UserError: as `abstract`.
    """
    wanted, floats = abstract(config, kind, dtype, mesh), sharding.param_shardings(config, mesh)

    def take(tree: Mapping[str, Any], wanted: Any, floats: Any, path: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            at, want = (*path, name), wanted[name]
            if isinstance(value, Mapping):
                found[name] = take(value, want, floats[name], at)
            elif isinstance(want, GroupQTensor):
                found[name] = _in_layers(functools.partial(_quantize_layer, kind, at), value, want, floats[name])
            else:
                found[name] = jax.device_put(value, floats[name]).astype(want.dtype)
        return found

    return take(params, wanted, floats, ())


def _in_layers(change: Any, kernel: Any, wanted: GroupQTensor, place: NamedSharding) -> GroupQTensor:
    """`change` of each layer of a kernel [L, ...], in the stacked arrays that `wanted` describes."""
    places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    one = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    empty = jax.jit(
        lambda: jax.tree.map(lambda leaf: jax.lax.empty(leaf.shape, leaf.dtype), wanted), out_shardings=places
    )

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=places)
    def put(stack: GroupQTensor, layer: jax.Array, number: jax.Array) -> GroupQTensor:
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, number, 0), stack, change(layer)
        )

    index = jax.jit(lambda kernel, i: jax.lax.dynamic_index_in_dim(kernel, i, keepdims=False), out_shardings=one)
    stack = empty()
    for number in range(kernel.shape[0]):  # arrays of several processes are indexed in a program
        layer = index(kernel, number) if isinstance(kernel, jax.Array) else jax.device_put(kernel[number], one)
        stack = put(stack, layer, jnp.int32(number))
    return stack


def _quantize_layer(kind: Kind, path: tuple[str, ...], kernel: jax.Array) -> GroupQTensor:
    """One layer's projection in few bits."""
    lead = int("experts" in path)
    inputs = num_input_axes(path[-2])
    width = math.prod(kernel.shape[lead : lead + inputs])
    sizes = _GROUPS[kind]
    group = next((size for size in sizes if width % size == 0), sizes[0])
    return quantize_groups(
        kernel, inputs, kind, group, num_lead_axes=lead, name="/".join(path[:-1]), scale_dtype=jnp.bfloat16
    )


def _abstract_kernel(config: ModelConfig, kind: Kind, path: tuple[str, ...], kernel: Any) -> Any:
    """Shapes of a projection of the layers in few bits; other kernels as they are."""
    stacks = {stack.name for stack in config.stacks()}
    if path[0] not in stacks or path[-2] in KEPT or (kind == "mxfp4" and "experts" not in path):
        return kernel
    one = jax.ShapeDtypeStruct(kernel.shape[1:], kernel.dtype)
    small = jax.eval_shape(functools.partial(_quantize_layer, kind, path), one)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((kernel.shape[0], *leaf.shape), leaf.dtype), small)


def _placed(path: tuple[str, ...], place: Any, shapes: Any, axes: Any, mesh: Mesh) -> Any:
    """Shardings of a projection in few bits: its inputs are one axis, which is split as the first of them would be.

    Every device has all scales of an output if groups would be cut.
    """
    small = functools.reduce(lambda node, name: node[name], path, shapes)
    if not isinstance(small, GroupQTensor):
        return place
    names = functools.reduce(lambda node, name: node[name], path, axes)
    at = small.codes.ndim + small.axis
    merged = (*names[: at + 1], *names[at + len(small.inputs) :])
    whole = small.scales.shape[at] % mesh_lib.parts(mesh, sharding.TABLE[merged[at]]) == 0
    arrays = {"codes": small.codes, "scales": small.scales}
    split = {"codes": merged, "scales": merged if whole else (*merged[:at], "latent", *merged[at + 1 :])}
    found = sharding.shardings({path[-2]: arrays}, {path[-2]: split}, mesh)[path[-2]]
    return dataclasses.replace(small, **found)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, GroupQTensor))
