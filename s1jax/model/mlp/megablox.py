"""Products of sorted rows with the weights of their experts on TPUs, by the Pallas kernels that ship with JAX.

XLA's `jax.lax.ragged_dot` computes the gradient of the weights for all experts and all rows there.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs.
"""

from __future__ import annotations

import functools

import jax
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

ROWS = 128  # of a tile; rows of two experts in one tile are computed twice
_KERNEL = 2**22  # most numbers of a weight's tile, which stays on the chip for all rows of an expert
_GRADIENT = 1024  # sides of a tile of a weight's gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x: jax.Array, weight: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
    """Multiplies sorted rows with the weight of their expert.

    Args:
      x: [S, D]; S is a multiple of `ROWS`.
      weight: [E, D, F] of the same dtype.
      sizes: int32 [E], rows of each expert.
      interpret: runs on any backend, slowly, for tests.

    Returns:
      [S, F] in the dtype of `x`, accumulated in float32; undefined for rows after the last expert's.
    """
    return expert_rows(x, weight, sizes, transpose=False, interpret=interpret)


@functools.partial(jax.jit, static_argnames=("transpose", "interpret"))
def expert_rows(x: jax.Array, weight: jax.Array, sizes: jax.Array, *, transpose: bool, interpret: bool) -> jax.Array:
    """Products of rows, with the weights or their transposes; `s1jax.plan.flops` knows them by this name."""
    depth, width = weight.shape[2:0:-1] if transpose else weight.shape[1:]
    tile = (ROWS, depth, min(width, max(128, _KERNEL // depth // 128 * 128)))
    return gmm(x, weight, sizes, x.dtype, tile, transpose_rhs=transpose, interpret=interpret)


def _forward(
    x: jax.Array, weight: jax.Array, sizes: jax.Array, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return product(x, weight, sizes, interpret), (x, weight, sizes)


def _backward(
    interpret: bool, kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x, weight, sizes = kept
    of_x = expert_rows(gradient, weight, sizes, transpose=True, interpret=interpret)
    return of_x, expert_weights(x, gradient, sizes, interpret=interpret), None


@functools.partial(jax.jit, static_argnames=("interpret",))
def expert_weights(x: jax.Array, gradient: jax.Array, sizes: jax.Array, *, interpret: bool) -> jax.Array:
    """Gradient of the weights [E, D, F]; `s1jax.plan.flops` knows it by this name."""
    tile = (ROWS, min(_GRADIENT, x.shape[1]), min(_GRADIENT, gradient.shape[1]))
    return tgmm(x.swapaxes(0, 1), gradient, sizes, x.dtype, tile, interpret=interpret)


product.defvjp(_forward, _backward)
