"""The device mesh and the one table that says which axis of an array lies along which axis of the mesh.

Mesh axes: `data` replicates the weights and splits the rows of a batch; `fsdp` splits rows as well, and weights and
optimizer state along the model width; `tensor` splits heads, the hidden width of the MLP and the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from s1jax.config import InputError, MeshConfig, ModelConfig
from s1jax.model import decoder

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes along which the rows of a batch lie

# Logical axis of a weight (`s1jax.model.decoder.logical_axes`) -> mesh axis.
TABLE: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "layers": None,
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges all devices in the mesh `(data, fsdp, tensor)`.

    Raises:
      InputError: where the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [getattr(config, name) for name in AXES]
    asked = ", ".join(f"mesh.{name}={size}" for name, size in zip(AXES, shape, strict=True))
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise InputError(f"{asked}: axes are positive, and at most one is -1 (all devices that are left).")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise InputError(f"{asked} does not divide the {len(devices)} devices here; choose axes whose product does.")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of `decoder.init_params` with a NamedSharding for every array.

    Raises:
      InputError: where an axis of the model does not divide by its mesh axis.
    """

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> NamedSharding:
        for size, axis in zip(leaf.shape, axes, strict=True):
            parts = _parts(mesh, TABLE[axis])
            if size % parts:
                name = "/".join(entry.key for entry in path)
                raise InputError(
                    f"mesh.{TABLE[axis]}={parts} does not divide {name}'s {axis} axis of {size}; "
                    f"choose a divisor of {size}."
                )
        return NamedSharding(mesh, PartitionSpec(*(TABLE[axis] for axis in axes)))

    is_leaf = lambda value: isinstance(value, tuple)  # noqa: E731
    axes = decoder.logical_axes(config)
    return jax.tree_util.tree_map_with_path(place, decoder.abstract_params(config), axes, is_leaf=is_leaf)


def replicated(mesh: Mesh) -> NamedSharding:
    """For arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [B, ...]: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[name] for name in ROWS)


def check_rows(rows: int, mesh: Mesh, what: str) -> None:
    """Raises InputError, in a sentence that begins with `what`, where `data` and `fsdp` cannot share `rows`."""
    if rows % row_shards(mesh):
        raise InputError(
            f"{what}, which mesh.data * mesh.fsdp = {row_shards(mesh)} does not divide; "
            "change train.batch_size or move devices to mesh.tensor."
        )


def put_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays [B, T] from this process's rows.

    Raises:
      InputError: where the rows do not divide by the devices along `data` and `fsdp`.
    """
    sharding = row_sharding(mesh)
    rows = len(batch["tokens"]) * jax.process_count()
    check_rows(rows, mesh, f"the batch has {rows} rows")
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def _parts(mesh: Mesh, axis: str | None) -> int:
    return 1 if axis is None else mesh.shape[axis]
