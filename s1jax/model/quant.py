"""Weights and KV pages in int8."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.model.layouts import Params, map_kernels, num_input_axes

_INT8_MAX = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """An array in int8 with scales: values * scale, off by half a scale at most.

    Attributes:
      values: int8.
      scale: float32; the shape of `values` without the axes that share a scale.
      axis: those axes, counted from the last one, so that a slice of a stacked layer has the same.
    """

    values: jax.Array
    scale: jax.Array
    axis: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def quantize(x: jax.Array, axis: tuple[int, ...] = (-1,)) -> QTensor:
    """int8, with one scale along the axes `axis`, counted from the last one; it is the largest magnitude over 127."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / _INT8_MAX
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return QTensor(values, jnp.squeeze(scale, axis), axis)


def quantize_params(params: Params) -> dict[str, Any]:
    """The same weights with every matrix that activations are multiplied with as a `QTensor`, for sampling.

    Those are the kernels and, if it is the output projection as well, the embedding; there is one scale for every
    output. Activations keep their type. A product with few rows takes as long as reading the weights, and these are
    half of bfloat16. Call it under jit.

    Args:
      params: tree of `s1jax.model.params`, in a floating type.
    """
    whole = {}
    for name, tree in params.items():
        change = functools.partial(_quantize_kernel, first=1 if name.startswith("layers") else 0)
        whole[name] = map_kernels(tree, change, name)
    if "head" not in params:
        whole["embed"] = {"embedding": quantize(params["embed"]["embedding"])}
    return whole


def _quantize_kernel(projection: str, kernel: jax.Array, first: int) -> QTensor:
    """A kernel whose inputs begin at axis `first`: 1 after the axis of stacked layers, else 0."""
    axes = range(first, first + num_input_axes(projection))
    return quantize(kernel, tuple(axis - kernel.ndim for axis in axes))
