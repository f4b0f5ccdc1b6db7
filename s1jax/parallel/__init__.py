"""The device mesh and the one table that says which axis of an array lies along which axes of the mesh.

Mesh axes: `data` replicates the weights and splits the rows of a batch; `fsdp` splits rows as well, and weights and
optimizer state along the model width; `sequence` splits the tokens of a row, and weights like `fsdp`; `tensor` splits
heads, the hidden width of the MLP and the vocabulary. The last axis' devices are neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from s1jax.config import Experiment, InputError, MeshConfig, ModelConfig
from s1jax.model import attention as attention_lib
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layers
from s1jax.model.blocks import Part

AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = ("data", "fsdp")  # mesh axes along which the rows of a batch lie
TOKENS = "sequence"  # and the tokens of a row
WIDTH = ("fsdp", "sequence")  # along which weights are split that every device needs whole

# Logical axis of a weight (`s1jax.model.decoder.logical_axes`) -> mesh axes.
TABLE: dict[str, tuple[str, ...]] = {
    "vocab": ("tensor",),
    "embed": WIDTH,
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),  # every device has all of them where they do not divide
    "head_dim": (),
    "layers": (),
}


Result = TypeVar("Result")

_SENTENCE_BYTES = 2048  # of an error that goes from one process to all


class SharedError(InputError):
    """An error that every process of a run raises at the same place, so that it is enough if one of them says it."""


def together(action: Callable[[], Result]) -> Result:
    """Runs `action` in every process and returns what it gave here; all processes call this at the same place.

    A process alone that turned back would leave the others waiting for it in their next collective operation.

    Raises:
      SharedError: in all processes, where `action` raised InputError in one of them; the sentence of the first one.
      InputError: the same where there is but one process.
    """
    if jax.process_count() == 1:
        return action()
    result, sentence = None, ""
    try:
        result = action()
    except InputError as error:
        sentence = str(error) if jax.process_index() == 0 else f"process {jax.process_index()}: {error}"
    mine = np.zeros(_SENTENCE_BYTES, np.uint8)
    text = np.frombuffer(sentence.encode()[:_SENTENCE_BYTES], np.uint8)
    mine[: len(text)] = text
    for row in multihost_utils.process_allgather(mine):
        said = row.tobytes().rstrip(b"\0").decode(errors="ignore")
        if said:
            raise SharedError(said)
    return result  # type: ignore[return-value]  # there was no error, so `action` has returned


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges all devices in the mesh `(data, fsdp, sequence, tensor)`.

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
    kinds = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(shape), AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # one axis of a TPU slice has to hold two of the mesh: fsdp=8, sequence=2 on 4x4
        grid = mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=kinds)


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of `decoder.init_params` with a NamedSharding for every array.

    Raises:
      InputError: where an axis of the model does not divide by its mesh axes, or two axes of a weight lie along the
        same one.
    """

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> NamedSharding:
        spec: list[tuple[str, ...]] = []
        for size, axis in zip(leaf.shape, axes, strict=True):
            along = TABLE[axis]
            taken = [other for other, earlier in zip(axes, spec, strict=False) if set(earlier) & set(along)]
            if taken:
                name = "/".join(entry.key for entry in path)
                raise InputError(
                    f"TABLE puts {name}'s axes {taken[0]} and {axis} along mesh.{along[0]} both; move one of them."
                )
            if size % parts(mesh, along):
                if axis != "kv_heads":
                    name = "/".join(entry.key for entry in path)
                    raise InputError(
                        f"{_product(mesh, along)} does not divide {name}'s {axis} axis of {size}; "
                        f"choose a divisor of {size}."
                    )
                along = ()
            spec.append(along)
        return NamedSharding(mesh, PartitionSpec(*spec))

    is_leaf = lambda value: isinstance(value, tuple)  # noqa: E731
    axes = decoder.logical_axes(config)
    return jax.tree_util.tree_map_with_path(place, decoder.abstract_params(config), axes, is_leaf=is_leaf)


def replicated(mesh: Mesh) -> NamedSharding:
    """For arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def token_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [B, T]: rows over `data` and `fsdp`, tokens over `sequence`."""
    return NamedSharding(mesh, PartitionSpec(ROWS, TOKENS))


def parts(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """Number of parts that what lies along `axes` is split into."""
    return math.prod(mesh.shape[axis] for axis in axes)


def row_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return parts(mesh, ROWS)


def check_batch(rows: int, length: int, mesh: Mesh, what: str) -> None:
    """Checks that the mesh can share out a batch [rows, length].

    Raises:
      InputError: where it can't; the sentence begins with `what`.
    """
    if rows % row_shards(mesh):
        raise InputError(
            f"{what} has {rows} rows, which {_product(mesh, ROWS)} does not divide; "
            "change train.batch_size or train.batch_tokens, or move devices to mesh.sequence or mesh.tensor."
        )
    shards = mesh.shape[TOKENS]
    if shards > 1 and length % (2 * shards):
        raise InputError(
            f"{what} has rows of {length} ids, which twice {_product(mesh, (TOKENS,))} does not divide; "
            f"choose a data.block_size that is a multiple of {2 * shards}, or a smaller mesh.sequence."
        )


def row_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch's rows this process reads, and how many shares there are; all have the same size.

    Processes whose devices hold the same rows, because other axes of the mesh lie across them, read the same share.

    Raises:
      InputError: where two processes have some rows in common and others not.
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
        raise InputError(
            f"{shape}: some processes would share a part of their rows; make mesh.data * mesh.fsdp a multiple or a "
            f"divisor of the {jax.process_count()} processes."
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays [B, T] from this process's rows.

    Where `sequence` splits a row, its tokens change places (`places`). Only attention asks where they stand, and
    `attend` knows it.

    Raises:
      InputError: where the mesh can't share it out, see `check_batch`.
    """
    share, length = batch["tokens"].shape
    shape = (share * row_share(mesh)[1], length)
    check_batch(*shape, mesh, "the batch")
    shards = mesh.shape[TOKENS]
    order = places(length, shards).reshape(-1) if shards > 1 else slice(None)  # which copies nothing
    return {
        name: jax.make_array_from_process_local_data(token_sharding(mesh), array[:, order], shape)
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


def choose_attention(
    experiment: Experiment, model: ModelConfig, mesh: Mesh, platform: str
) -> tuple[Experiment, str | None]:
    """The experiment with the attention that runs on this mesh, and a sentence where it isn't what was asked for."""
    train, data = experiment.train, experiment.data
    packed = data.batching == "packed" or data.source == "countdown_corpus"  # which packs whatever it is asked for
    name, note = attention_lib.choose(
        train.attention, platform, train.compute_dtype, packed, mesh.shape[TOKENS], model.head_dim
    )
    chosen: Any = name
    return dataclasses.replace(experiment, train=dataclasses.replace(train, attention=chosen)), note


def attend(mesh: Mesh, implementation: str) -> attention_lib.Attend:
    """`s1jax.model.attention.attend` on a mesh, for `s1jax.model.decoder.forward` on batches of `put_batch`.

    Each device has the queries of its rows, tokens and heads; keys and values of whole rows are gathered along
    `sequence`, and their gradients scattered. Where key heads do not divide along `tensor`, every device has them all
    and uses those of its query heads.
    """
    if mesh.size == 1:
        return functools.partial(attention_lib.attend, implementation=implementation)
    shards, tensor = mesh.shape[TOKENS], mesh.shape["tensor"]

    def on_mesh(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        split_keys = key_head_shards(mesh, k.shape[2]) == tensor
        table = places(q.shape[1], shards)

        def device(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
            if not split_keys:
                k, v = (_own_heads(x, q.shape[2], tensor) for x in (k, v))
            if shards == 1:
                return attention_lib.attend(q, k, v, segment_ids, implementation)
            k, v, whole_segment_ids = (_whole_rows(x, shards) for x in (k, v, segment_ids))
            part = Part(table, jax.lax.axis_index(TOKENS), whole_segment_ids)
            return attention_lib.attend(q, k, v, segment_ids, implementation, part=part)

        heads = PartitionSpec(ROWS, TOKENS, "tensor")
        keys = heads if split_keys else PartitionSpec(ROWS, TOKENS)
        # Replication is checked by the tests, as in `s1jax.train.losses.cross_entropy`.
        return jax.shard_map(
            device,
            mesh=mesh,
            in_specs=(heads, keys, keys, PartitionSpec(ROWS, TOKENS)),
            out_specs=heads,
            check_vma=False,
        )(q, k, v, segment_ids)

    return on_mesh


def lookup(mesh: Mesh) -> decoder.Lookup:
    """`s1jax.model.layers.lookup` on a mesh, for `s1jax.model.decoder.forward` on batches of `put_batch`.

    Each device looks up its slice of the width and of the vocabulary for the tokens of all devices that have other
    slices, and hands the values over. Left to the compiler, the whole embedding is gathered where `sequence` splits
    rows, twice a micro-batch: 1.6 GB each of Qwen2.5-32B's.
    """
    if mesh.size == 1:
        return layers.lookup

    def device(embedding: jax.Array, tokens: jax.Array) -> jax.Array:
        tokens = jax.lax.all_gather(tokens, WIDTH, axis=0, tiled=True) - embedding.shape[0] * jax.lax.axis_index(vocab)
        here = (tokens >= 0) & (tokens < embedding.shape[0])
        x = jnp.where(here[..., None], layers.lookup(embedding, jnp.where(here, tokens, 0)), 0)
        return jax.lax.psum(jax.lax.all_to_all(x, WIDTH, split_axis=0, concat_axis=2, tiled=True), vocab)

    vocab = TABLE["vocab"]
    tokens = PartitionSpec(ROWS, TOKENS)
    # Replication is checked by the tests, as in `s1jax.train.losses.cross_entropy`.
    return jax.shard_map(
        device, mesh=mesh, in_specs=(PartitionSpec(vocab, WIDTH), tokens), out_specs=tokens, check_vma=False
    )


def key_head_shards(mesh: Mesh, kv_heads: int) -> int:
    """Number of parts that key heads are split into along `tensor`: 1, all on every device, where they don't divide."""
    tensor = mesh.shape["tensor"]
    return tensor if kv_heads % tensor == 0 else 1


def page_sharding(mesh: Mesh, kv_heads: int, split_rows: bool = True) -> NamedSharding:
    """For stacked pages [L, N, K, ...]: pages as their rows, heads along `tensor` where they divide."""
    rows, heads = _page_axes(mesh, kv_heads, split_rows)
    return NamedSharding(mesh, PartitionSpec(None, rows, heads))


def _page_axes(mesh: Mesh, kv_heads: int, split_rows: bool) -> tuple[tuple[str, ...] | None, str | None]:
    return ROWS if split_rows else None, "tensor" if key_head_shards(mesh, kv_heads) > 1 else None


def attend_cached(
    mesh: Mesh | None, kv_heads: int, split_rows: bool, pages_at_once: int = 1, pages_in_place: bool = False
) -> attention_lib.AttendCached:
    """`s1jax.model.attention.attend_cached` on a mesh, for `s1jax.model.decoder.forward_cached` with stacked pages.

    Each device has the pages of its rows and heads, so nothing of the cache ever moves; a row's table counts the pages
    of its own devices.

    Args:
      mesh: None: one device.
      kv_heads: of the model.
      split_rows: rows lie along `data` and `fsdp`; False: every device has all of them, as in a prefill.
      pages_at_once: see there.
      pages_in_place: see there.
    """
    device = functools.partial(attention_lib.attend_cached, pages_at_once=pages_at_once, pages_in_place=pages_in_place)
    if mesh is None:
        return device
    rows, heads = _page_axes(mesh, kv_heads, split_rows)
    tokens, pages = PartitionSpec(rows, None, heads), page_sharding(mesh, kv_heads, split_rows).spec
    return jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, pages, PartitionSpec(), PartitionSpec(rows)),
        out_specs=(tokens, pages),
        check_vma=False,
    )


def copy_pages(mesh: Mesh | None, kv_heads: int) -> Callable[..., Any]:
    """`s1jax.model.cache.copy_pages` on a mesh, from pages that all have to those of some rows.

    `places` is int32 [row shards, number of pages], the places in the pages of each share of the rows.
    """

    def device(pages: Any, source: cache_lib.Pages, places: jax.Array) -> Any:
        return cache_lib.copy_pages(pages, source, places[0])

    if mesh is None:
        return device
    into, from_ = (page_sharding(mesh, kv_heads, split_rows).spec for split_rows in (True, False))
    specs = (into, from_, PartitionSpec(ROWS))
    return jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=into, check_vma=False)


def _own_heads(x: jax.Array, queries: int, tensor: int) -> jax.Array:
    """Of all key or value heads [B, T, K, H], those of this device's query heads: one, or one for each of them."""
    group = queries * tensor // x.shape[2]
    first = jax.lax.axis_index("tensor") * queries
    if group % queries == 0:
        return jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2)
    return x[:, :, (first + jnp.arange(queries)) // group]


def _whole_rows(x: jax.Array, shards: int) -> jax.Array:
    """Gathers [B, T / shards, ...] into rows [B, T, ...] whose tokens are in order."""
    gathered = jax.lax.all_gather(x, TOKENS, axis=1, tiled=True)
    runs = jnp.split(gathered, 2 * shards, axis=1)  # of the devices in turn: an early one and a late one
    return jnp.concatenate([*runs[::2], *runs[::-2]], axis=1)


def _product(mesh: Mesh, axes: tuple[str, ...]) -> str:
    """`mesh.data * mesh.fsdp = 4`, for messages; axes of one device are left out beside others."""
    split = [axis for axis in axes if mesh.shape[axis] > 1] or axes
    return f"{' * '.join(f'mesh.{axis}' for axis in split)} = {parts(mesh, axes)}"
