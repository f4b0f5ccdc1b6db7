"""Weights and KV pages in int8 with a scale for every output or vector, and whole trees of quantised weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from s1jax.model.layouts import Params, map_kernels, num_input_axes
from s1jax.model.quant_cpu import IntegerKernel
from s1jax.model.quant_groups import GroupQTensor, Kind, quantize_groups

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

    def integer_kernel(self) -> IntegerKernel:
        """The kernel of one layer, or an embedding, as a CPU multiplies with it."""
        inputs = [axis + self.values.ndim for axis in self.axis]
        outputs = [axis for axis in range(self.values.ndim) if axis not in inputs]
        values = jnp.transpose(self.values, (*outputs, *inputs))
        return IntegerKernel(values.reshape(self.scale.size, -1), self.scale.reshape(-1))


def quantize(x: jax.Array, axis: tuple[int, ...] = (-1,)) -> QTensor:
    """int8, with one scale along the axes `axis`, counted from the last one; it is the largest magnitude over 127."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / _INT8_MAX
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return QTensor(values, jnp.squeeze(scale, axis), axis)


@jax.custom_vjp
def matmul(x: jax.Array, weight: QTensor) -> jax.Array:
    """[..., D] @ a kernel with one scale per output -> [..., F] in the dtype of `x`.

    The kernel has no gradient. The backward pass converts it a second time, so that no float copy of it is kept.
    """
    kernel = weight.values.astype(x.dtype).reshape(x.shape[-1], -1)
    y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    return (y * weight.scale.reshape(-1)).astype(x.dtype)


def _matmul_forward(x: jax.Array, weight: QTensor) -> tuple[jax.Array, tuple[QTensor, jax.Array]]:
    return matmul(x, weight), (weight, jnp.zeros((x.shape[-1], 0)))


def _matmul_backward(kept: tuple[QTensor, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    weight, width = kept
    gradient, weight = jax.lax.optimization_barrier((gradient, weight))
    scaled = (gradient * weight.scale.reshape(-1)).astype(gradient.dtype)
    kernel = weight.values.astype(gradient.dtype).reshape(width.shape[0], -1)
    return jnp.einsum("...f,df->...d", scaled, kernel), None


matmul.defvjp(_matmul_forward, _matmul_backward)


def quantize_params(params: Params, kind: Kind = "int8", group: int = 0, *, embedding: bool = True) -> dict[str, Any]:
    """The same weights with every matrix that activations are multiplied with in a quantised type, for sampling.

    Those are the kernels and, if it is the output projection as well, the embedding. The output projection is always
    int8 with one scale per output. Routers of experts, the gate of a shared expert and the two projections that MLA
    absorbs (`key_up`, `value_up`) stay as they are. Activations keep their type. A product with few rows takes as long
    as reading the weights, so smaller ones are faster. Call it under jit.

    Args:
      params: tree of `s1jax.model.params`, in a floating type.
      kind: of the weights of layers.
      group: inputs that share a scale, see `s1jax.model.quant_groups`; 0: one scale for every output (int8 only).
      embedding: quantise a tied embedding.

    Raises:
      UserError: the groups don't divide the inputs of a kernel.
    """

    def change(path: tuple[str, ...], kernel: jax.Array) -> jax.Array | QTensor | GroupQTensor:
        projection = path[-2]
        if projection in KEPT:
            return kernel
        lead = path[0].startswith("layers") + ("experts" in path)
        inputs = num_input_axes(projection)
        if projection != "head" and (group or kind != "int8"):
            return quantize_groups(kernel, inputs, kind, group, num_lead_axes=lead, name="/".join(path))
        return quantize(kernel, tuple(axis - kernel.ndim for axis in range(lead, lead + inputs)))

    whole = map_kernels(params, change)
    if "head" not in params and embedding:
        whole["embed"] = {"embedding": quantize(params["embed"]["embedding"])}
    return whole


KEPT = ("router", "shared_gate", "key_up", "value_up")
