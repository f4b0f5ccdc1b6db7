"""Products of all sorted rows with the weights of their experts in one kernel, where the platform has one.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from s1jax.model.linear import Weight
from s1jax.model.mlp.expert_weights import ExpertWeights, base

ROWS = 128  # of a tile
STEP = 64  # rows of a step of Mosaic's gradient of the weights, of all its kernels through the contracted axis
CHUNKS = 8  # of the rows that a device has on average, where experts are spread over devices
_TILE = 64  # the widths of Mosaic's operands are multiples of it


def mosaic_takes(experts: ExpertWeights, dtype: jax.typing.DTypeLike) -> bool:
    """Whether the GPUs are Hopper ones, and their kernel computes these shapes and this dtype."""
    if jax.default_backend() == "gpu" and getattr(jax.devices()[0], "compute_capability", "") != "9.0":
        return False  # otherwise a program is compiled ahead of time; all GPUs of `s1jax.plan.targets` are Hopper ones
    kernels = base(experts.gate), base(experts.down)
    whole = all(size % _TILE == 0 for kernel in kernels if isinstance(kernel, jax.Array) for size in kernel.shape[-2:])
    return whole and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def chunk(pairs: int, shares: int) -> int:
    """Rows that Mosaic's kernels are given at a time, whole tiles; sorted rows are a multiple of it.

    Args:
      pairs: of tokens and experts.
      shares: devices that the experts are spread over.
    """
    return ROWS * math.ceil(pairs / ROWS / (1 if shares == 1 else CHUNKS * shares))


def product(
    x: jax.Array, weight: Weight, sizes: jax.Array, is_pair: jax.Array, implementation: str, chunk: int
) -> jax.Array:
    """Multiplies sorted rows with the weight of their expert.

    Args:
      x: [S, D].
      weight: array [E, D, F].
      sizes: int32 [E], rows of each expert.
      is_pair: bool [S, 1], whether an expert has the row.
      implementation: `megablox` or `mosaic`, or the former interpreted, for tests: `megablox_interpreted`.
      chunk: see above.

    Returns:
      [S, F] in the dtype of `x`; 0 for rows that no expert has.
    """
    assert isinstance(weight, jax.Array)
    weight = weight.astype(x.dtype)
    x = jnp.where(is_pair, x, 0)  # the kernels write nothing to the other rows, in the backward pass neither
    # Pallas takes a while to import.
    if implementation == "mosaic":
        from s1jax.model.mlp import mosaic

        fill = [-size % _TILE for size in weight.shape[1:]]  # of an adapter's rank, or none
        wide = jnp.pad(weight, ((0, 0), (0, fill[0]), (0, fill[1])))
        x = jnp.pad(x, ((0, 0), (0, fill[0])))
        y = mosaic.product(x, wide, sizes, chunk)[:, : weight.shape[2]]
    else:
        from s1jax.model.mlp import megablox

        y = megablox.product(x, weight, sizes, implementation == "megablox_interpreted")
    return jnp.where(is_pair, y, 0)
