"""What a run with adapters trains, and the frozen weights that it trains them for."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from s1jax.checkpoint import store
from s1jax.config.experiment import Experiment, TrainConfig
from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import adapters, decoder
from s1jax.model.layouts import map_kernels, num_input_axes
from s1jax.model.quant import KEPT
from s1jax.model.quant_groups import GroupQTensor, quantize_groups
from s1jax.parallel import sharding


def abstract_trained(config: ModelConfig, lora: LoraConfig, dtype: DTypeLike) -> dict[str, Any]:
    """The tree that is trained, the adapters or all weights, as `jax.ShapeDtypeStruct`s."""
    if lora.rank:
        return adapters.abstract(config, lora, dtype)
    return decoder.abstract_params(config, jnp.dtype(dtype))


def trained_shardings(config: ModelConfig, lora: LoraConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of `abstract_trained` with a NamedSharding for every array.

    Raises:
      UserError: as `sharding.shardings`.
    """
    if not lora.rank:
        return sharding.param_shardings(config, mesh)
    return sharding.shardings(adapters.abstract(config, lora, jnp.float32), adapters.logical_axes(config, lora), mesh)


def check(config: ModelConfig, experiment: Experiment) -> None:
    """Checks that adapters have a checkpoint to belong to, and that the model has the projections that shall get them.

    Raises:
      UserError: one of these is not so.
    """
    lora = experiment.lora
    if lora.rank and not experiment.init_from:
        raise UserError(
            f"lora.rank is {lora.rank}, and adapters belong to a checkpoint; give config.init_from instead of"
            " config.model."
        )
    if lora.rank and not list(adapters.paths(config, lora)):
        raise UserError(f"lora.targets is {lora.targets!r}, and the model has none of these; choose other projections.")


def abstract_base(config: ModelConfig, lora: LoraConfig, train: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """The frozen weights as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      UserError: no group of the base's type divides a projection, or as `sharding.shardings`.
    """
    shapes = decoder.abstract_params(config, jnp.dtype(train.compute_dtype if lora.quantized else lora.base))
    shardings = sharding.param_shardings(config, mesh)
    if lora.quantized:
        axes = decoder.logical_axes(config)
        shapes = map_kernels(shapes, functools.partial(_small, lora.base, config))
        shardings = map_kernels(shardings, lambda path, place: _placed(path, place, shapes, axes, mesh))
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)


def base_shardings(config: ModelConfig, lora: LoraConfig, train: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of the frozen weights with a NamedSharding for every array."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_base(config, lora, train, mesh))


def load_base(folder: pathlib.Path, experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """Loads the weights of a checkpoint as they are held during training.

    Weights that get quantised are on a device one stacked array at a time.

    Raises:
      UserError: as `store.load_model`.
    """
    lora, train = experiment.lora, experiment.train
    if not lora.quantized:
        return dict(store.load_model(folder, mesh=mesh, dtype=lora.base).params)
    if jax.process_count() > 1:
        model = store.load_model(folder, mesh=mesh, dtype=train.compute_dtype)
    else:
        model = store.load_model(folder, host=True)
    return quantize(dict(model.params), model.config, lora, train, mesh)


def quantize(params: Any, config: ModelConfig, lora: LoraConfig, train: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """Weights as a base in few bits on a mesh; `params` is emptied on the way."""
    wanted, floats = base_shardings(config, lora, train, mesh), sharding.param_shardings(config, mesh)

    def take(tree: dict[str, Any], wanted: Any, floats: Any, path: tuple[str, ...]) -> dict[str, Any]:
        found = {}
        for name in list(tree):
            value = tree.pop(name)
            at = (*path, name)
            if isinstance(value, Mapping):
                found[name] = take(dict(value), wanted[name], floats[name], at)
                continue
            value = jax.device_put(value, floats[name])
            if isinstance(wanted[name], GroupQTensor):
                change = functools.partial(_small, lora.base, config, at)
                found[name] = jax.jit(change, out_shardings=wanted[name])(value)
            else:
                found[name] = value.astype(train.compute_dtype)
        return found

    return take(dict(params), wanted, floats, ())


def _small(kind: Any, config: ModelConfig, path: tuple[str, ...], kernel: Any) -> Any:
    """A projection of the layers in few bits; other kernels as they are."""
    stacks = {stack.name for stack in config.stacks()}
    if path[0] not in stacks or path[-2] in KEPT:
        return kernel
    lead = 2 if "experts" in path else 1
    inputs = num_input_axes(path[-2])
    width = math.prod(kernel.shape[lead : lead + inputs])
    group = next((size for size in (64, 32) if width % size == 0), 64)
    name = "/".join(path[:-1])
    one = functools.partial(
        quantize_groups, num_input_axes=inputs, kind=kind, group=group, num_lead_axes=lead - 1, name=name,
        scale_dtype=jnp.bfloat16,
    )  # fmt: skip
    whole = functools.partial(jax.lax.map, one)  # layer by layer, so that only one is held in float32
    return jax.eval_shape(whole, kernel) if isinstance(kernel, jax.ShapeDtypeStruct) else whole(kernel)


def _placed(path: tuple[str, ...], place: Any, shapes: Any, axes: Any, mesh: Mesh) -> Any:
    """Shardings of a projection in few bits: its inputs are one axis, which is split as the first of them would be."""
    small = functools.reduce(lambda node, name: node[name], path, shapes)
    if not isinstance(small, GroupQTensor):
        return place
    names = functools.reduce(lambda node, name: node[name], path, axes)
    at = small.codes.ndim + small.axis
    merged = (*names[: at + 1], *names[at + len(small.inputs) :])
    arrays = {"codes": small.codes, "scales": small.scales}
    found = sharding.shardings({path[-2]: arrays}, {path[-2]: dict.fromkeys(arrays, merged)}, mesh)[path[-2]]
    return dataclasses.replace(small, **found)


def init(config: ModelConfig, lora: LoraConfig, seed: int, dtype: DTypeLike, mesh: Mesh) -> dict[str, Any]:
    """The adapters of step 0 on a mesh, see `adapters.init`."""
    make = functools.partial(adapters.init, config, lora, dtype=dtype)
    return jax.jit(make, out_shardings=trained_shardings(config, lora, mesh))(jax.random.key(seed))
