"""Counts the FLOPs of kernels with the weights of experts, which depend on what tokens choose."""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core

from s1jax.model.mlp import ragged

# Functions of `s1jax.model.mlp.mosaic` and `megablox`, and the rows of their tiles.
_KERNELS = {"expert_rows": ragged.ROWS, "expert_weights": ragged.ROWS, "hopper_expert_weights": ragged.STEP}


def of(equation: core.JaxprEqn, shares: int) -> float | None:
    """FLOPs of one kernel if all experts have as many rows; None for everything else.

    A tile is computed twice where it has rows of two experts.

    Args:
      equation: of a jaxpr.
      shares: devices that experts are spread over.
    """
    name = equation.params.get("name")
    if equation.primitive.name not in ("jit", "pjit") or name not in _KERNELS:
        return None
    variables: list[Any] = [*equation.outvars, *equation.invars]
    shapes = [variable.aval.shape for variable in variables]
    if not any(len(shape) == 3 for shape in shapes):
        return None  # a part that JAX has cut off, which computes tables
    rows = next(shape[0] for shape in shapes[len(equation.outvars) :] if len(shape) == 2)
    experts, *sides = next(shape for shape in shapes if len(shape) == 3)
    product = 2.0 * math.prod(sides)
    chunks = 0.0 if shares == 1 else rows / shares / ragged.CHUNKS / 2
    return product * (rows / shares + chunks + _KERNELS[name] * (experts - 1))
