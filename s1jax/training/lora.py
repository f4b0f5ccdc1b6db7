"""What a run with adapters trains, and the frozen weights that it trains them for."""

from __future__ import annotations

import functools
import pathlib
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
from s1jax.parallel import quantized, sharding


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
      UserError: as `quantized.abstract`.
    """
    if lora.quantized:
        return quantized.abstract(config, _kind(lora), train.compute_dtype, mesh)
    return sharding.abstract_params(config, lora.base, mesh)


def base_shardings(config: ModelConfig, lora: LoraConfig, train: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of the frozen weights with a NamedSharding for every array."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_base(config, lora, train, mesh))


def load_base(folder: pathlib.Path, experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """Loads the weights of a checkpoint as they are held during training.

    Raises:
      UserError: as `store.load_model`.
    """
    lora, train = experiment.lora, experiment.train
    if not lora.quantized:
        return dict(store.load_model(folder, mesh=mesh, dtype=lora.base).params)
    model = store.load_model(folder, host=True) if jax.process_count() == 1 else store.load_model(folder, mesh=mesh)
    return quantized.quantize(model.params, model.config, _kind(lora), train.compute_dtype, mesh)


def _kind(lora: LoraConfig) -> Any:
    return lora.base


def init(config: ModelConfig, lora: LoraConfig, seed: int, dtype: DTypeLike, mesh: Mesh) -> dict[str, Any]:
    """The adapters of step 0 on a mesh, see `adapters.init`."""
    make = functools.partial(adapters.init, config, lora, dtype=dtype)
    return jax.jit(make, out_shardings=trained_shardings(config, lora, mesh))(jax.random.key(seed))
