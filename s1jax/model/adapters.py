"""Adapters of low rank as a tree beside the tree of weights.

The adapter of a projection has the projection's path, in the tree of `s1jax.model.params`, with two arrays:

    layers/attention/query/a [L, D, R]            layers/attention/query/b [L, R, N, H]
    layers/attention/out/a [L, N, H, R]           layers/attention/out/b [L, R, D]
    layers/mlp/experts/gate/a [L, E, D, R]        layers/mlp/experts/gate/b [L, E, R, F]

`a` is PEFT's `lora_A` transposed, `b` its `lora_B`; axis letter R: rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.config.schema import require
from s1jax.model import params as params_lib
from s1jax.model.layouts import Params, num_input_axes
from s1jax.model.linear import Adapted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters with their scale.

    Attributes:
      tree: see the module's text.
      scale: what the product with `a` and `b` is multiplied with.
    """

    tree: Params
    scale: float = dataclasses.field(metadata={"static": True})


def paths(config: ModelConfig, lora: LoraConfig) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Every projection that has an adapter: its path, the axes before its inputs, and the first axis of its outputs."""
    wanted, stacks = lora.projections(), {stack.name for stack in config.stacks()}
    for path, _ in jax.tree_util.tree_leaves_with_path(params_lib.abstract_params(config)):
        *folders, leaf = (entry.key for entry in path)
        if leaf != "kernel" or folders[0] not in stacks or folders[-1] not in wanted:
            continue
        lead = 2 if "experts" in folders else 1
        yield tuple(folders), lead, lead + num_input_axes(folders[-1])


def abstract(config: ModelConfig, lora: LoraConfig, dtype: DTypeLike) -> dict[str, Any]:
    """The tree of adapters as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    shapes, found = params_lib.abstract_params(config), dict[str, Any]()
    for path, lead, out in paths(config, lora):
        shape = _at(shapes, path)["kernel"].shape
        put(found, path, {
            "a": jax.ShapeDtypeStruct((*shape[:out], lora.rank), jnp.dtype(dtype)),
            "b": jax.ShapeDtypeStruct((*shape[:lead], lora.rank, *shape[out:]), jnp.dtype(dtype)),
        })  # fmt: skip
    return found


def check(tree: Params, config: ModelConfig, lora: LoraConfig) -> None:
    """Refuses a tree that is not of the adapters that `lora` gives this model.

    Raises:
      UserError: names the array that is missing, that the model has no place for, or whose shape is another.
    """
    require(lora.rank > 0, "lora.rank is 0, which means no adapters; give the rank that the adapters have.")
    wanted, found = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (abstract(config, lora, jnp.float32), tree))
    )
    remedy = "give adapters of this model, and the rank and targets that they have."
    for name in sorted({*wanted, *found}):
        require(name in found, f"{name} is missing from the adapters; {remedy}")
        require(name in wanted, f"the model has no adapter {name} with lora.targets {lora.targets}; {remedy}")
        require(
            tuple(found[name]) == tuple(wanted[name]),
            f"{name} has shape {list(found[name])} where the model needs {list(wanted[name])}; {remedy}",
        )


def logical_axes(config: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
    """The tree of adapters with a tuple of axis names for every array, as `params.logical_axes`."""
    axes, found = params_lib.logical_axes(config), dict[str, Any]()
    for path, lead, out in paths(config, lora):
        names = _at(axes, path)["kernel"]
        put(found, path, {"a": (*names[:out], "rank"), "b": (*names[:lead], "rank", *names[out:])})
    return found


def init(config: ModelConfig, lora: LoraConfig, key: jax.Array, dtype: DTypeLike) -> dict[str, Any]:
    """Adapters at the start, as PEFT has them: `a` uniform in +-1 / sqrt(inputs), `b` zero, so nothing changes yet."""
    found: dict[str, Any] = {}
    shapes = abstract(config, lora, dtype)
    for index, (path, lead, out) in enumerate(paths(config, lora)):
        pair = _at(shapes, path)
        inputs = 1
        for size in pair["a"].shape[lead:out]:
            inputs *= size
        bound = inputs**-0.5
        a = jax.random.uniform(jax.random.fold_in(key, index), pair["a"].shape, jnp.float32, -bound, bound)
        put(found, path, {"a": a.astype(dtype), "b": jnp.zeros(pair["b"].shape, dtype)})
    return found


def num_params(config: ModelConfig, lora: LoraConfig, active: bool = False) -> int:
    """Number of the adapters' weights; with `active` only those that one token is multiplied with."""
    tree, total = abstract(config, lora, jnp.float32), 0.0
    for path, lead, _ in paths(config, lora):
        size = sum(leaf.size for leaf in _at(tree, path).values())
        if active and lead == 2 and config.experts is not None:
            size *= config.experts.experts_per_token / config.experts.num_experts
        total += size
    return round(total)


def attach(weights: Params, adapters: Params, scale: float) -> dict[str, Any]:
    """Weights, or a part of them, with an `Adapted` in place of every kernel that has an adapter."""
    found = dict(weights)
    for name, tree in adapters.items():
        if set(tree) == {"a", "b"}:
            found[name] = {**weights[name], "kernel": Adapted(weights[name]["kernel"], tree["a"], tree["b"], scale)}
        else:
            found[name] = attach(weights[name], tree, scale)
    return found


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts a value into nested dicts, which are made where they are missing."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
