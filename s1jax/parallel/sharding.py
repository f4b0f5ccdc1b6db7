"""The one table that says along which mesh axes each axis of an array is split, and batches placed by it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.parallel.mesh import ROWS, TOKENS, WIDTH, parts, product, row_shards

# Logical axis of a weight (`s1jax.model.decoder.logical_axes`) -> mesh axes.
TABLE: dict[str, tuple[str, ...]] = {
    "vocab": ("tensor",),
    "embed": WIDTH,
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),  # every device has all of them where they do not divide
    "head_dim": (),
    "latent": (),
    "router": (),  # every device routes its tokens among all experts
    "experts": ("tensor",),
    "expert_mlp": (),
    "layers": (),
    "rank": (),
}


def abstract_params(config: ModelConfig, dtype: DTypeLike, mesh: Mesh) -> dict[str, Any]:
    """The tree of `decoder.init_params` as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      UserError: as `shardings`.
    """
    return with_shardings(decoder.abstract_params(config, jnp.dtype(dtype)), param_shardings(config, mesh))


def with_shardings(shapes: Any, places: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s with the shardings of a tree of the same structure."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of `decoder.init_params` with a NamedSharding for every array.

    Raises:
      UserError: as `shardings`.
    """
    return shardings(decoder.abstract_params(config), decoder.logical_axes(config), mesh)


def shardings(arrays: Any, axes: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of a tree.

    Args:
      arrays: tree of arrays or `jax.ShapeDtypeStruct`s.
      axes: the same tree with a tuple of logical axes for every array.
      mesh: of `mesh_lib.make_mesh`.

    Raises:
      UserError: if an axis of the model does not divide by its mesh axes, or the same mesh axis splits two axes of a
        weight.
    """

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> NamedSharding:
        spec: list[tuple[str, ...]] = []
        for size, axis in zip(leaf.shape, axes, strict=True):
            along = TABLE[axis]
            taken = [other for other, earlier in zip(axes, spec, strict=False) if set(earlier) & set(along)]
            if taken:
                name = "/".join(entry.key for entry in path)
                raise UserError(
                    f"TABLE puts {name}'s axes {taken[0]} and {axis} along mesh.{along[0]} both; move one of them."
                )
            if size % parts(mesh, along):
                if axis != "kv_heads":
                    name = "/".join(entry.key for entry in path)
                    raise UserError(
                        f"{product(mesh, along)} does not divide {name}'s {axis} axis of {size}; "
                        f"choose a divisor of {size}."
                    )
                along = ()
            spec.append(along)
        return NamedSharding(mesh, PartitionSpec(*spec))

    is_leaf = lambda value: isinstance(value, tuple)  # noqa: E731
    return jax.tree_util.tree_map_with_path(place, arrays, axes, is_leaf=is_leaf)


def replicated(mesh: Mesh) -> NamedSharding:
    """For arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def token_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [B, T, ...]: rows over `data` and `fsdp`, tokens over `sequence`."""
    return NamedSharding(mesh, PartitionSpec(ROWS, TOKENS))


def check_batch(rows: int, length: int, mesh: Mesh, what: str) -> None:
    """Checks that the mesh can share out a batch [rows, length].

    Raises:
      UserError: where it can't; the sentence begins with `what`.
    """
    if rows % row_shards(mesh):
        raise UserError(
            f"{what} has {rows} rows, which {product(mesh, ROWS)} does not divide; "
            "change train.batch_size or train.batch_tokens, or move devices to mesh.sequence or mesh.tensor."
        )
    shards = mesh.shape[TOKENS]
    if shards > 1 and length % (2 * shards):
        raise UserError(
            f"{what} has rows of {length} ids, which twice {product(mesh, (TOKENS,))} does not divide; "
            f"choose a data.block_size that is a multiple of {2 * shards}, or a smaller mesh.sequence."
        )


def row_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch's rows this process reads, and how many shares there are; all have the same size.

    Processes whose devices hold the same rows, because other axes of the mesh split them, read the same share.

    Raises:
      UserError: if two processes share some rows but not all.
    """
    if jax.process_count() == 1:
        return 0, 1
    held: dict[int, set[int]] = {}
    rows_of: Any = NamedSharding(mesh, PartitionSpec(ROWS)).devices_indices_map((row_shards(mesh),))
    for device, (rows,) in rows_of.items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(rows) for rows in shares}) > 1 or sum(map(len, shares)) > row_shards(mesh):
        shape = ", ".join(f"mesh.{name}={size}" for name, size in mesh.shape.items())
        raise UserError(
            f"{shape}: some processes would share a part of their rows; make mesh.data * mesh.fsdp a multiple or a "
            f"divisor of the {jax.process_count()} processes."
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays [B, T, ...] from this process's rows.

    Where `sequence` splits a row, its tokens change places (`places`). Only attention asks where they stand, and
    `s1jax.parallel.ops.attend` knows it.

    Raises:
      UserError: where the mesh can't share it out, see `check_batch`.
    """
    share, length = batch["tokens"].shape
    shape = (share * row_share(mesh)[1], length)
    check_batch(*shape, mesh, "the batch")
    shards = mesh.shape[TOKENS]
    order = places(length, shards).reshape(-1) if shards > 1 else slice(None)  # which copies nothing
    return {
        name: jax.make_array_from_process_local_data(token_sharding(mesh), array[:, order], shape + array.shape[2:])
        for name, array in batch.items()
    }


def places(length: int, shards: int) -> np.ndarray:
    """Which tokens of a row each of `shards` devices has, int [shards, length / shards].

    A row is cut into 2 x shards runs, and device r has runs r and 2 x shards - 1 - r: together they see the same number
    of earlier tokens on every device, where the last of equal shares would see twice the mean.
    """
    if shards == 1:
        return np.arange(length)[None]
    runs = np.arange(length).reshape(2 * shards, -1)
    return np.concatenate([runs[:shards], runs[: shards - 1 : -1]], axis=1)


def key_head_shards(mesh: Mesh, kv_heads: int) -> int:
    """Number of parts that key heads are split into along `tensor`: 1, all on every device, where they don't divide."""
    tensor = mesh.shape["tensor"]
    return tensor if kv_heads % tensor == 0 else 1


def page_sharding(mesh: Mesh, kv_heads: int, split_rows: bool = True) -> NamedSharding:
    """For stacked pages [L, N, K, ...]: pages as their rows, heads along `tensor` where they divide."""
    rows, heads = page_axes(mesh, kv_heads, split_rows)
    return NamedSharding(mesh, PartitionSpec(None, rows, heads))


def page_axes(mesh: Mesh, kv_heads: int, split_rows: bool) -> tuple[tuple[str, ...] | None, str | None]:
    """Mesh axes of the pages and of their heads; None where they are not split."""
    return ROWS if split_rows else None, "tensor" if key_head_shards(mesh, kv_heads) > 1 else None
