"""How weights and KV pages are arranged in memory while a model is sampled from.

Training and checkpoints have one arrangement: layers stacked, kernels as [inputs, outputs]. The types here mark the
others, and code that multiplies with a weight or runs the layers looks at the type.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax

from s1jax.config.model import ModelConfig
from s1jax.model import quant_cpu

Params = Mapping[str, Any]
_T = TypeVar("_T")
_SAME_INPUT = (("query", "key", "value"), ("gate", "up"))  # projections


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransposedKernel:
    """The kernel of a projection as the left operand of a product, see `s1jax.model.linear.matmul_weight_left`.

    Attributes:
      matrix: [prod(outputs), prod(inputs)].
    """

    matrix: jax.Array


@runtime_checkable
class Quantized(Protocol):
    """A quantised kernel of one layer, of `s1jax.model.quant` or `s1jax.model.quant_groups`."""

    def integer_kernel(self) -> Any:
        """The same in the arrangement of products on a CPU, or itself if it has none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unstacked(Generic[_T]):
    """Trees of arrays without a layer axis, one tree a layer: weights, or pages of the cache."""

    layers: tuple[_T, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InStack:
    """One layer's part of stacked weights, not cut out.

    A scan copies the slice of a layer. For experts that is many times what a few tokens read of it.

    Attributes:
      stack: an array [L, ...], or a quantised weight that has such arrays.
      layer: int32 scalar.
    """

    stack: Any
    layer: jax.Array


def without_experts(stacked: Params) -> Params:
    """Stacked weights of layers, for a scan that gets those of experts by `with_experts`."""
    if "experts" not in stacked["mlp"]:
        return stacked
    return {**stacked, "mlp": {name: tree for name, tree in stacked["mlp"].items() if name != "experts"}}


def with_experts(one: Params, stacked: Params, layer: jax.Array) -> Params:
    """The weights of one layer, cut out by a scan, with its experts as `InStack`."""
    if "experts" not in stacked["mlp"]:
        return one
    experts = {
        name: {key: InStack(leaf, layer) for key, leaf in projection.items()}
        for name, projection in stacked["mlp"]["experts"].items()
    }
    return {**one, "mlp": {**one["mlp"], "experts": experts}}


def num_input_axes(projection: str) -> int:
    """Number of axes that a projection's kernel is contracted over; attention's `out` has [heads, head_dim] -> D."""
    return 2 if projection == "out" else 1


def unstack(params: Params, config: ModelConfig, transpose_kernels: bool) -> dict[str, Any]:
    """The same weights with `layers` as `Unstacked`, for `decoder.forward_cached` and `decoder.logits`.

    A scan copies each layer's slice out of the stacked arrays at every step. On a CPU that costs as much as reading the
    weights (benchmarks/decode.py). On an H100 it costs twice that: the program that is compiled for Qwen2.5-7B moves 40
    instead of 15 GB through its memory for a token. Unstacked, the copy is made once; the price is that the weights are
    held twice and that L layers are compiled. Call it under jit.

    Args:
      params: tree of `s1jax.model.params`, or of `s1jax.model.quant.quantize_params`.
      config: of the model.
      transpose_kernels: every kernel becomes a `TransposedKernel`, except those of experts, and so does a tied
        embedding; quantised ones, experts included, become a `s1jax.model.quant_cpu.IntegerKernel`,
        joined where projections have the same input. For CPUs.
    """
    stacks = config.stacks()
    layers: list[Any] = [None] * config.num_layers
    for stack in stacks:
        for i, number in enumerate(stack.numbers):
            layers[number] = jax.tree.map(lambda a, i=i: a[i], params[stack.name])
    rest = {name: tree for name, tree in params.items() if name not in {stack.name for stack in stacks}}
    if transpose_kernels:
        layers = [_join(map_kernels(layer, _transpose)) for layer in layers]
        rest = map_kernels(rest, _transpose)
        if config.tied_embeddings:
            table = rest["embed"]["embedding"]
            small = isinstance(table, Quantized)
            rest["embed"] = {"embedding": table.integer_kernel() if small else TransposedKernel(table)}
    return {**rest, "layers": Unstacked(tuple(layers))}


def map_kernels(
    tree: Params, change: Callable[[tuple[str, ...], jax.Array], Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The tree with `change(path, kernel)` in place of every kernel.

    A path is the keys from the root down to "kernel"; the one before is the projection's name. `path` is the tree's.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found[key] = map_kernels(value, change, (*path, key))
        else:
            found[key] = change((*path, key), value) if key == "kernel" else value
    return found


def _transpose(path: tuple[str, ...], kernel: jax.Array | Quantized) -> Any:
    if "experts" in path and isinstance(kernel, Quantized):
        return jax.vmap(lambda one: one.integer_kernel())(kernel)
    if "experts" in path or path[-2] in ("router", "shared_gate"):
        return kernel  # products of single rows and of small blocks were as fast with either operand on the left
    if isinstance(kernel, Quantized):  # MLA multiplies with the absorbed ones from both sides
        return kernel if path[-2] in ("key_up", "value_up") else kernel.integer_kernel()
    inputs = math.prod(kernel.shape[: num_input_axes(path[-2])])
    return TransposedKernel(kernel.reshape(inputs, -1).T)


def _join(tree: Params) -> dict[str, Any]:
    """The weights of a layer with the `quant_cpu.IntegerKernel`s of projections of one input joined."""
    found = {
        key: _join(value) if isinstance(value, Mapping) and key != "experts" else value for key, value in tree.items()
    }
    for names in _SAME_INPUT:
        kernels = [found[name]["kernel"] for name in names if name in found]
        if len(kernels) == len(names) and all(isinstance(kernel, quant_cpu.IntegerKernel) for kernel in kernels):
            for name, kernel in zip(names, quant_cpu.join(kernels), strict=True):
                found[name] = {**found[name], "kernel": kernel}
    return found
