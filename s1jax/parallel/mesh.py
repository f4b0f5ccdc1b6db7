"""The device mesh and its axes.

Mesh axes: `data` replicates the weights and splits the rows of a batch; `fsdp` splits rows as well, and weights and
optimizer state along the model width; `sequence` splits the tokens of a row, and weights like `fsdp`; `tensor` splits
heads, the hidden width of the MLP and the vocabulary. The last axis' devices are neighbours.
"""

from __future__ import annotations

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from s1jax.config.experiment import MeshConfig
from s1jax.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = ("data", "fsdp")  # mesh axes that split the rows of a batch
TOKENS = "sequence"  # and the tokens of a row
WIDTH = ("fsdp", "sequence")  # mesh axes that split weights which every device needs whole


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges all devices in the mesh `(data, fsdp, sequence, tensor)`.

    Raises:
      UserError: where the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [getattr(config, name) for name in AXES]
    asked = ", ".join(f"mesh.{name}={size}" for name, size in zip(AXES, shape, strict=True))
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"{asked}: axes are positive, and at most one is -1 (all devices that are left).")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise UserError(f"{asked} does not divide the {len(devices)} devices here; choose axes whose product does.")
    kinds = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(shape), AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # one axis of a TPU slice has to hold two of the mesh: fsdp=8, sequence=2 on 4x4
        grid = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=kinds)


def parts(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Number of parts into which `axes` split an array."""
    return math.prod(mesh.shape[axis] for axis in axes)


def row_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return parts(mesh, ROWS)


def product(mesh: Mesh, axes: tuple[str, ...]) -> str:
    """`mesh.data * mesh.fsdp = 4`, for messages; axes of one device are left out beside others."""
    split = [axis for axis in axes if mesh.shape[axis] > 1] or axes
    return f"{' * '.join(f'mesh.{axis}' for axis in split)} = {parts(mesh, axes)}"
