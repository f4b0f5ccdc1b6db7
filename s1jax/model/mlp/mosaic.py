"""Products of sorted rows with the weights of their experts on Hopper GPUs, by Pallas kernels that ship with JAX.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu

_ROWS = 128  # of a tile
_DEPTH = 64  # of a step through the contracted axis
_STEPS = 4  # tiles that are loaded ahead


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies sorted rows with the weight of their expert.

    Args:
      x: [S, D] in bfloat16 or float16; S is a multiple of 128, D and F are multiples of 64.
      weight: [E, D, F] of the same dtype.
      sizes: int32 [E], rows of each expert.

    Returns:
      [S, F] in the dtype of `x`, accumulated in float32; undefined for rows after the last expert's.
    """
    return _product(x, weight, sizes, transpose=False)


def _product(x: jax.Array, weight: jax.Array, sizes: jax.Array, transpose: bool) -> jax.Array:
    return ragged_dot_mgpu.ragged_dot(
        x,
        weight,
        group_sizes=sizes,
        block_m=_ROWS,
        block_n=_width(weight.shape[1 if transpose else 2]),
        block_k=_DEPTH,
        max_concurrent_steps=_STEPS,
        grid_block_n=4,
        transpose_rhs=transpose,
    )


def _forward(
    x: jax.Array, weight: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return product(x, weight, sizes), (x, weight, sizes)


def _backward(kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, weight, sizes = kept
    of_x = _product(gradient, weight, sizes, transpose=True)
    of_weight = transposed_ragged_dot_mgpu.transposed_ragged_dot(
        x,
        gradient,
        group_sizes=sizes,
        block_m=_width(x.shape[1]),
        block_n=_width(gradient.shape[1]),
        block_k=_DEPTH,
        max_concurrent_steps=_STEPS,
        grid_block_n=4,
    )
    return of_x, of_weight, None


product.defvjp(_forward, _backward)


def _width(size: int) -> int:
    """Width of a tile, a divisor of the operand's."""
    return 128 if size % 128 == 0 else 64
