"""Products with int8 and int4 weights on a CPU.

XLA has fast products of int8 matrices there, from two rows on (YNNPACK; jax 0.10). Activations become two int8 numbers
each, so that one row is two: 127 * 254 steps of the row's largest magnitude, which is as good as float32 for a model.
With many rows, blocks of the weights are converted to float32 while they are in the processor's cache.

Axis letters: R rows, D inputs, F outputs, G groups of inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

_FEW_ROWS = 16  # from here on products of float32 are faster (benchmarks/small_weights.py)
_BLOCK = 2**18  # weights that are converted to float32 at once: 1 MB
_INT8_BLOCK = 2**21  # int4 weights that are unpacked for one product of int8: 2 MB
_STEPS = 254  # of the second int8 number in one step of the first
_INT8_MAX, _SHIFT = 127, 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntegerKernel:
    """A kernel, or a tied embedding, in the arrangement of this file's products.

    Attributes:
      codes: int8 [F, D], or int4 codes as in `quant_groups.GroupQTensor`, uint8 [G, group / 2, F].
      scale: float32 [F], of int8 numbers.
      multipliers: int16 [G, 1, F] for int4, else None: code * multiplier / 256, rounded, is the int8 number. Its
        largest error, half a scale, is 1 / 254 of the output's largest weight.
    """

    codes: jax.Array
    scale: jax.Array
    multipliers: jax.Array | None = None


def join(kernels: Sequence[IntegerKernel]) -> list[IntegerKernel]:
    """Kernels of the same inputs and type: the first gets the outputs of all, the others are left without outputs.

    One large product is faster than several small ones, which take much of their time to start.
    """
    axes = IntegerKernel(*((-2, -1, None) if kernels[0].multipliers is None else (-1, -1, -1)))  # of outputs
    whole = jax.tree.map(lambda axis, *parts: jnp.concatenate(parts, axis), axes, *kernels)
    empty = jax.tree.map(lambda axis, part: jax.lax.slice_in_dim(part, 0, 0, axis=axis), axes, kernels[0])
    return [whole, *[empty] * (len(kernels) - 1)]


def of_groups(codes: jax.Array, scales: jax.Array) -> IntegerKernel:
    """int4 codes uint8 [G, group / 2, F] with float scales [G, F]."""
    scale = jnp.max(jnp.abs(scales), 0) * (8 / _INT8_MAX)
    multipliers = jnp.round(scales / jnp.where(scale == 0, 1, scale) * 2**_SHIFT).astype(jnp.int16)
    return IntegerKernel(codes, scale, multipliers[:, None])


def matmul(x: jax.Array, kernel: IntegerKernel) -> jax.Array:
    """[..., D] @ [D, F] -> float32 [..., F]; a row does not depend on the others among fewer than 16."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    product = _integers if rows.shape[0] < _FEW_ROWS else _floats
    return product(rows, kernel).reshape(*x.shape[:-1], -1)


def rows_of(kernel: IntegerKernel, tokens: jax.Array) -> jax.Array:
    """Rows of an int8 embedding: int32 [B, T] -> float32 [B, T, D]."""
    return kernel.codes[tokens].astype(jnp.float32) * kernel.scale[tokens][..., None]


def _integers(x: jax.Array, kernel: IntegerKernel) -> jax.Array:
    """`matmul` of [R, D] by products of int8."""
    largest = jnp.max(jnp.abs(x), -1, keepdims=True)
    step = jnp.where(largest == 0, 1, largest) / _INT8_MAX
    first = jnp.round(x / step)
    both = jnp.concatenate([first, jnp.round((x / step - first) * _STEPS)]).astype(jnp.int8)
    sums = _dot(both, kernel.codes, 1) if kernel.multipliers is None else _over_groups(both, kernel, _dot)
    first, second = jnp.split(sums.astype(jnp.float32), 2)
    return (first + second / _STEPS) * step * kernel.scale


def _dot(x: jax.Array, codes: jax.Array, axis: int = 0) -> jax.Array:
    """int8 [R, D] times int8 weights, whose inputs are their axis `axis` -> int32 [R, F]."""
    return jax.lax.dot_general(x, codes, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.int32)


def _unpack(codes: jax.Array, multipliers: jax.Array, high: int) -> jax.Array:
    """One half of every group, uint8 [G, group / 2, F] -> int8 of the same shape."""
    signed = (codes >> 4 if high else codes & 15).astype(jnp.int16) - 8
    return ((signed * multipliers + 2 ** (_SHIFT - 1)) >> _SHIFT).astype(jnp.int8)


def _floats(x: jax.Array, kernel: IntegerKernel) -> jax.Array:
    """`matmul` of [R, D] by products of float32."""
    if kernel.multipliers is None:
        return _over_outputs(x, kernel.codes) * kernel.scale

    def product(x: jax.Array, codes: jax.Array) -> jax.Array:
        return x @ jax.lax.optimization_barrier(codes.astype(jnp.float32))

    return _over_groups(x, kernel, product) * kernel.scale


def _over_outputs(x: jax.Array, codes: jax.Array) -> jax.Array:
    """float32 [R, D] times int8 [F, D], one block of outputs after the other.

    A loop converts a block when its turn comes. Without one, XLA converts the weights of all layers first, because they
    do not depend on activations, and its barriers do not hold that up. One block would not be a loop.
    """
    outputs, inputs = codes.shape
    size = max(1, min(-(-outputs // 2), _BLOCK // inputs))
    x_t = jax.lax.optimization_barrier(x.T)

    def one(number: jax.Array, found: jax.Array) -> jax.Array:
        start = number * size  # both slices move the last block back to the end
        block = jax.lax.dynamic_slice_in_dim(codes, start, size).astype(jnp.float32)
        part = jax.lax.optimization_barrier(jax.lax.optimization_barrier(block) @ x_t)
        return jax.lax.dynamic_update_slice_in_dim(found, part, start, 0)

    return jax.lax.fori_loop(0, -(-outputs // size), one, jnp.zeros((outputs, x.shape[0]), jnp.float32)).T


def _over_groups(
    x: jax.Array, kernel: IntegerKernel, product: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """[R, D] times int4 weights: all groups of inputs at once, or a few after the other in a loop.

    XLA would unpack the weights of all layers first, because they do not depend on activations. A loop keeps it from
    that, and so does a zero that is computed from activations.

    Args:
      x: [R, D].
      kernel: with multipliers.
      product: ([R, N], int8 [N, F]) -> [R, F]; the products are added up.
    """
    assert kernel.multipliers is not None
    arrays = kernel.codes, kernel.multipliers
    integers = x.dtype == jnp.int8
    groups, half, outputs = kernel.codes.shape
    split = jnp.moveaxis(x.reshape(-1, groups, 2, half), 1, 0)  # [G, R, 2, group / 2]

    def products(codes: jax.Array, multipliers: jax.Array, inputs: jax.Array) -> jax.Array:
        rows = jnp.moveaxis(inputs, 0, 2)  # [R, 2, G, group / 2]
        low, high = (
            product(rows[:, i].reshape(x.shape[0], -1), _unpack(codes, multipliers, i).reshape(-1, outputs))
            for i in (0, 1)
        )
        return low + high

    if integers and kernel.codes.size <= _INT8_BLOCK:
        zero = (x[0, 0] < -_INT8_MAX).astype(jnp.uint8)
        return products(kernel.codes + zero, kernel.multipliers, split)
    most = max(1, min(groups // 2, (_INT8_BLOCK if integers else _BLOCK) // (half * outputs)))
    at_once = next(size for size in range(most, 0, -1) if groups % size == 0)

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        parts = (jax.lax.dynamic_slice_in_dim(array, number * at_once, at_once) for array in (*arrays, split))
        return total + products(*parts)

    total = jnp.zeros((x.shape[0], outputs), jnp.int32 if integers else jnp.float32)
    return jax.lax.fori_loop(0, groups // at_once, add, total)
