"""Products of all sorted rows with the weights of their experts in one kernel, where the platform has one.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from s1jax.model.linear import Weight
from s1jax.model.mlp.expert_weights import ExpertWeights
from s1jax.model.mlp.groups import Groups

ROWS = 128  # sorted rows are a multiple of it
_TILE = 64  # the widths of Mosaic's operands are multiples of it


def mosaic_takes(experts: ExpertWeights, dtype: jax.typing.DTypeLike) -> bool:
    """Whether the kernel for Hopper GPUs computes these shapes and this dtype."""
    shapes = [kernel.shape for kernel in (experts.gate, experts.down) if isinstance(kernel, jax.Array)]
    whole = all(size % _TILE == 0 for shape in shapes for size in shape[1:])
    return whole and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def product(x: jax.Array, weight: Weight, groups: Groups, implementation: str) -> jax.Array:
    """Multiplies sorted rows with the weight of their expert.

    Args:
      x: [S, D].
      weight: array [E, D, F].
      groups: of the rows.
      implementation: `megablox` or `mosaic`, or the former interpreted, for tests: `megablox_interpreted`.

    Returns:
      [S, F] in the dtype of `x`; 0 for rows that no expert has.
    """
    assert isinstance(weight, jax.Array)
    weight = weight.astype(x.dtype)
    is_pair = (jnp.arange(x.shape[0]) < groups.ends[-1])[:, None]
    x = jnp.where(is_pair, x, 0)  # the kernels write nothing to the other rows, in the backward pass neither
    # Pallas takes a while to import.
    if implementation == "mosaic":
        from s1jax.model.mlp import mosaic

        y = mosaic.product(x, weight, groups.sizes)
    else:
        from s1jax.model.mlp import megablox

        y = megablox.product(x, weight, groups.sizes, implementation == "megablox_interpreted")
    return jnp.where(is_pair, y, 0)
