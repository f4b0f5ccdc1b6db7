"""Linear maps over weights of every type: plain arrays, transposed kernels, quantised ones, any with an adapter.

A projection holds its weight in the dtype it was created with and computes in the dtype of its input. Axis letters:
B batch, T length, R rows (B and T in one), D inputs, F outputs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from s1jax.model import quant, quant_cpu, quant_groups
from s1jax.model.layouts import TransposedKernel
from s1jax.model.quant import QTensor
from s1jax.model.quant_cpu import IntegerKernel
from s1jax.model.quant_groups import GroupQTensor

INIT_STD = 0.02  # initializer_range of the Qwen and Llama configurations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A kernel with an adapter of low rank beside it: x W + scale * (x A) B.

    Attributes:
      weight: [inputs, outputs], of any other type.
      a: [inputs, R].
      b: [R, outputs].
      scale: of the adapter's product.
    """

    weight: Weight
    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchAdapted:
    """A kernel with adapters for the sequences of a batch, see `s1jax.model.batched_adapters`.

    Attributes:
      weight: [inputs, outputs], of any other type.
      a: [A, D, R], for A adapters; those of experts have an axis E before A.
      b: [A, R, F], likewise.
      scales: float32 [A], of the adapters' products.
      chosen: int32 [B], the adapter of each sequence; no adapter has a negative number. None: no sequence has one.
    """

    weight: Weight
    a: jax.Array
    b: jax.Array
    scales: jax.Array
    chosen: jax.Array | None = None

    def own(self) -> jax.Array:
        """float32 [B, A], the scale of the adapter that a sequence has, and 0 for the others."""
        assert self.chosen is not None
        return jnp.where(self.chosen[:, None] == jnp.arange(len(self.scales)), self.scales, 0)

    def add(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """The product [B * T, F] of `x` [B * T, D] with the kernel, and the scaled products of the adapters."""
        if self.chosen is None:
            return y
        count, _, rank = self.a.shape
        own = self.own()
        own = jnp.repeat(own, x.shape[0] // own.shape[0], axis=0)
        inner = jnp.einsum("td,adr->tar", x, self.a.astype(x.dtype)) * own[..., None].astype(x.dtype)
        return y + inner.reshape(-1, count * rank) @ self.b.astype(x.dtype).reshape(count * rank, -1)


Weight = jax.Array | TransposedKernel | QTensor | GroupQTensor | IntegerKernel | Adapted | BatchAdapted


def transpose_in(x: jax.Array) -> jax.Array:
    """[R, D] -> [D, R], the right operand of `matmul_weight_left`.

    With 16 rows that form reads the weight once and is about 1.7 times faster on a CPU than a product with the weight
    on the right, which packs it first (benchmarks/decode.py). The barriers here and in `transpose_out` keep XLA from
    turning one form into the other.
    """
    return jax.lax.optimization_barrier(x.T)


def transpose_out(y: jax.Array) -> jax.Array:
    """[F, R] -> [R, F], the way back from `matmul_weight_left`."""
    return jax.lax.optimization_barrier(y).T


def matmul_weight_left(kernel: jax.Array, x_t: jax.Array) -> jax.Array:
    """[F, D] @ [D, R] -> [F, R].

    On a CPU, XLA runs a product of one row with a matrix of up to 2**19 weights on one core. Two batched products of
    half the matrix use two cores and take 0.6 of the time with 512 x 512 weights. Larger ones use all cores.
    """
    half, odd = divmod(kernel.shape[0], 2)
    if x_t.shape[1] > 1 or odd or not 2**17 < kernel.size <= 2**19:
        return kernel @ x_t
    both = jnp.broadcast_to(x_t, (2, *x_t.shape))  # `matmul` would join the halves to one product
    return jax.lax.batch_matmul(kernel.reshape(2, half, -1), both).reshape(-1, 1)


def matmul(x: jax.Array, weight: Weight) -> jax.Array:
    """Product of activations with the kernel of a projection.

    Args:
      x: [..., D]; [R, D] for a `TransposedKernel`.
      weight: an array whose first axes have D elements in all, or another type of such a kernel.

    Returns:
      [..., F] in the dtype of `x`.
    """
    match weight:
        case Adapted():
            rank = weight.a.shape[-1]
            inner = x @ weight.a.astype(x.dtype).reshape(x.shape[-1], rank)
            return matmul(x, weight.weight) + weight.scale * (inner @ weight.b.astype(x.dtype).reshape(rank, -1))
        case BatchAdapted():
            return weight.add(matmul(x, weight.weight), x)
        case QTensor():
            return quant.matmul(x, weight)
        case GroupQTensor():
            return quant_groups.matmul(x, weight)
        case IntegerKernel():
            return quant_cpu.matmul(x, weight).astype(x.dtype)
        case TransposedKernel():
            return transpose_out(matmul_weight_left(weight.matrix.astype(x.dtype), transpose_in(x)))
        case _:
            return x @ weight.astype(x.dtype).reshape(x.shape[-1], -1)


def output_logits(hidden: jax.Array, weight: Weight, tied: bool) -> jax.Array:
    """Product of hidden states with the output projection.

    Args:
      hidden: [..., D].
      weight: [D, V], or the embedding [V, D] if `tied`; a `TransposedKernel` is [V, D] in both cases, and so is an
        `IntegerKernel`.
      tied: the embedding is the output projection. It is contracted in its own order: a transposed copy would be made
        at every decode step.

    Returns:
      float32 [..., V].
    """
    if isinstance(weight, IntegerKernel):
        return quant_cpu.matmul(hidden, weight)
    if isinstance(weight, TransposedKernel):
        kernel = weight.matrix.astype(hidden.dtype)
        x_t = transpose_in(hidden.reshape(-1, hidden.shape[-1]))
        logits = transpose_out(jnp.matmul(kernel, x_t, preferred_element_type=jnp.float32))
        return logits.reshape(*hidden.shape[:-1], -1)
    if isinstance(weight, GroupQTensor):
        return output_logits(hidden, weight.dequantize(hidden.dtype), tied)
    assert not isinstance(weight, Adapted | BatchAdapted)  # neither embedding nor head has an adapter
    kernel = (weight.values if isinstance(weight, QTensor) else weight).astype(hidden.dtype)
    contract = (((hidden.ndim - 1,), (1 if tied else 0,)), ((), ()))
    logits = jax.lax.dot_general(hidden, kernel, contract, preferred_element_type=jnp.float32)
    return logits * weight.scale if isinstance(weight, QTensor) else logits


class Projection(nnx.Module):
    """Linear map from the last axes of the input, `inputs`, to the axes `out`, with an optional bias over `out`."""

    def __init__(
        self, inputs: Sequence[int], out: Sequence[int], dtype: DTypeLike, rngs: nnx.Rngs, use_bias: bool = False
    ):
        shape = (*inputs, *out)
        self.kernel = nnx.Param(INIT_STD * jax.random.truncated_normal(rngs.params(), -3, 3, shape, dtype))
        self.bias = nnx.Param(jnp.zeros(tuple(out), dtype)) if use_bias else None
        self.num_in, self.out = len(inputs), tuple(out)

    def weight(self) -> Weight:
        """The kernel in the type that it has in the tree of weights."""
        return self.kernel.get_value()

    def __call__(self, x: jax.Array, merge_batch_and_seq: bool = True) -> jax.Array:
        """Applies the map.

        Args:
          x: [B, T, *inputs].
          merge_batch_and_seq: B and T become one axis, so that there is one matrix product over all tokens. With two
            axes, the gradient of the kernel transposes its operands element by element on a CPU, which took 2 of 7
            seconds of a backward pass (benchmarks/train_step.py). If both axes are split among devices, False keeps
            every device from computing whole rows. A `TransposedKernel` needs True.

        Returns:
          [B, T, *out] in the dtype of `x`.
        """
        lead = x.shape[: x.ndim - self.num_in]
        x = x.reshape(math.prod(lead), -1) if merge_batch_and_seq else x.reshape(*lead, -1)
        return self.finish(matmul(x, self.weight()), lead)

    def finish(self, y: jax.Array, lead: Sequence[int]) -> jax.Array:
        """The product [..., F] with the bias, [*lead, *out]."""
        y = y.reshape(*lead, *self.out)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def apply_all(
    projections: Sequence[Projection], x: jax.Array, merge_batch_and_seq: bool = True
) -> tuple[jax.Array, ...]:
    """The maps of one input [B, T, D], see `Projection`; one product if `quant_cpu.join` has joined their kernels."""
    weights = [projection.weight() for projection in projections]
    first, second, *_ = (weight.weight if isinstance(weight, BatchAdapted) else weight for weight in weights)
    if not (isinstance(first, IntegerKernel) and isinstance(second, IntegerKernel) and second.scale.size == 0):
        return tuple(projection(x, merge_batch_and_seq) for projection in projections)
    rows = x.reshape(-1, x.shape[-1])
    ends = list(itertools.accumulate(math.prod(projection.out) for projection in projections))
    parts = jnp.split(matmul(rows, first), ends[:-1], -1)
    for i, weight in enumerate(weights):
        if isinstance(weight, BatchAdapted):
            parts[i] = weight.add(parts[i], rows)
    return tuple(projection.finish(part, x.shape[:-1]) for projection, part in zip(projections, parts, strict=True))
