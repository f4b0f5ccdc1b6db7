"""Counts the FLOPs of products with the weights of experts, whose loops and kernels depend on what tokens choose."""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core

from s1jax.model.mlp import ragged

# Functions of `s1jax.model.mlp`: `sorted_blocks`, `mosaic` and `megablox`.
_LOOPS = ("expert_blocks", "expert_blocks_backward")
_KERNELS = ("expert_rows", "expert_weights")


def of(equation: core.JaxprEqn, shares: int) -> float | None:
    """FLOPs of one product, or of a product's gradients, if all experts have as many rows; None for everything else.

    Blocks of a loop are full but for an expert's last one, which is half full on average. Kernels compute a tile twice
    where it has rows of two experts.

    Args:
      equation: of a jaxpr.
      shares: devices that experts are spread over.
    """
    name = equation.params.get("name")
    if equation.primitive.name not in ("jit", "pjit") or name not in (*_LOOPS, *_KERNELS):
        return None
    variables: list[Any] = [*equation.outvars, *equation.invars]
    shapes = [variable.aval.shape for variable in variables]
    rows = shapes[len(equation.outvars)][0]
    experts, *sides = next(shape for shape in shapes if len(shape) == 3)
    product = 2.0 * math.prod(sides)
    if name in _KERNELS:
        chunks = 0.0 if shares == 1 else rows / shares / ragged.CHUNKS / 2
        return product * (rows / shares + chunks + ragged.ROWS * (experts - 1))
    table = next(shape[0] for shape in shapes if len(shape) == 1)
    block = 1 << round(math.log2(rows / (table - experts + 1)))
    return len(equation.outvars) * product * ((rows - block) / shares + experts * block / 2)
