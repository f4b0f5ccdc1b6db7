"""Products of sorted rows with the weights of their experts on Hopper GPUs, by Pallas kernels that ship with JAX.

The kernels compute a tile for all rows that they are given, whether or not an expert has them. Where a token's experts
are spread over devices, most of its pairs belong to others, so rows are handed over chunk by chunk up to the last one.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs, C rows of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu

from s1jax.model.mlp.ragged import ROWS, STEP

_STEPS = 4  # tiles that are loaded ahead


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x: jax.Array, weight: jax.Array, sizes: jax.Array, chunk: int) -> jax.Array:
    """Multiplies sorted rows with the weight of their expert.

    Args:
      x: [S, D] in bfloat16 or float16; D and F are multiples of 64.
      weight: [E, D, F] of the same dtype.
      sizes: int32 [E], rows of each expert.
      chunk: C, a multiple of `ROWS` that divides S.

    Returns:
      [S, F] in the dtype of `x`, accumulated in float32; undefined for rows after the last expert's.
    """
    return expert_rows(x, weight, sizes, chunk=chunk, transpose=False)


@functools.partial(jax.jit, static_argnames=("chunk", "transpose"))
def expert_rows(x: jax.Array, weight: jax.Array, sizes: jax.Array, *, chunk: int, transpose: bool) -> jax.Array:
    """Products of rows, with the weights or their transposes; `s1jax.plan.flops` knows them by this name."""
    width = weight.shape[1 if transpose else 2]

    def kernel(x: jax.Array, sizes: jax.Array) -> jax.Array:
        return ragged_dot_mgpu.ragged_dot(
            x,
            weight,
            group_sizes=sizes,
            block_m=ROWS,
            block_n=_width(width),
            block_k=STEP,
            max_concurrent_steps=_STEPS,
            grid_block_n=4,
            transpose_rhs=transpose,
        )

    if chunk == x.shape[0]:
        return kernel(x, sizes)

    def put(y: jax.Array, start: jax.Array, own: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice_in_dim(x, start, chunk)
        return jax.lax.dynamic_update_slice_in_dim(y, kernel(rows, own), start, axis=0)

    return _over_chunks(put, jnp.zeros((x.shape[0], width), x.dtype), sizes, chunk)


def _over_chunks(body: Callable[[Any, jax.Array, jax.Array], Any], start: Any, sizes: jax.Array, chunk: int) -> Any:
    """Runs `body(carry, first row, rows of each expert in the chunk)` up to the last row that an expert has."""
    ends = jnp.cumsum(sizes)

    def step(i: jax.Array, carry: Any) -> Any:
        inside = jnp.clip(jnp.stack([ends - sizes, ends]) - i * chunk, 0, chunk)
        return body(carry, i * chunk, inside[1] - inside[0])

    return jax.lax.fori_loop(0, (ends[-1] + chunk - 1) // chunk, step, start)


def _forward(
    x: jax.Array, weight: jax.Array, sizes: jax.Array, chunk: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return product(x, weight, sizes, chunk), (x, weight, sizes)


def _backward(
    chunk: int, kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x, weight, sizes = kept
    of_x = expert_rows(gradient, weight, sizes, chunk=chunk, transpose=True)
    return of_x, hopper_expert_weights(x, gradient, sizes, chunk=chunk), None


@functools.partial(jax.jit, static_argnames=("chunk",))
def hopper_expert_weights(x: jax.Array, gradient: jax.Array, sizes: jax.Array, *, chunk: int) -> jax.Array:
    """Gradient of the weights [E, D, F]; `s1jax.plan.flops` knows it by this name."""

    def kernel(x: jax.Array, gradient: jax.Array, sizes: jax.Array) -> jax.Array:
        return transposed_ragged_dot_mgpu.transposed_ragged_dot(
            x,
            gradient,
            group_sizes=sizes,
            block_m=_width(x.shape[1]),
            block_n=_width(gradient.shape[1]),
            block_k=STEP,
            max_concurrent_steps=_STEPS,
            grid_block_n=4,
        )

    if chunk == x.shape[0]:
        return kernel(x, gradient, sizes)

    def add(total: jax.Array, start: jax.Array, own: jax.Array) -> jax.Array:
        rows, its = (jax.lax.dynamic_slice_in_dim(a, start, chunk) for a in (x, gradient))
        return total + kernel(rows, its, own).astype(jnp.float32)

    shape = (sizes.shape[0], x.shape[1], gradient.shape[1])
    return _over_chunks(add, jnp.zeros(shape, jnp.float32), sizes, chunk).astype(x.dtype)


product.defvjp(_forward, _backward)


def _width(size: int) -> int:
    """Width of a tile, a divisor of the operand's."""
    return 128 if size % 128 == 0 else 64
