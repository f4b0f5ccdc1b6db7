"""Counts the floating-point operations of a program's matrix products in its jaxpr.

The compilers' own figures count the body of a loop once, and custom calls not at all. A jaxpr has the length of every
scan.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval


def count(jaxpr: core.Jaxpr) -> float:
    """Counts the FLOPs of all `dot_general`s whose result is used: 2 per multiply-add, loops times their length.

    A condition costs as much as its more expensive branch. The body of `shard_map` counts once per device, that of a
    Pallas kernel once per block of its grid that is not skipped. The attention of cuDNN and of
    `s1jax.model.attention.flash` is counted by formula.

    Raises:
      ValueError: for a matrix product inside a loop of unknown length, and for an unknown Pallas kernel.
    """
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: core.Jaxpr) -> float:
    """`count` of all there is."""
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        known = _by_formula(equation)
        if known is not None:
            total += known
            continue
        inner = [_count(body) for body in bodies(equation.params)]
        if name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contract)
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "while" and any(inner):
            raise ValueError("a matrix product is inside a loop whose length is not known beforehand")
        elif name == "cond":
            total += max(inner)
        elif name == "pallas_call":
            total += _blocks_run(equation) * sum(inner)
        elif name == "shard_map":
            total += equation.params["mesh"].size * sum(inner)
        else:
            total += sum(inner)
    return total


# Products per pair and H of cuDNN's attention: two forward; backward, the scores again and four more.
_CUDNN = {"dot_product_attention_fwd_wrapper": 4.0, "dot_product_attention_bwd_wrapper": 10.0}


def _by_formula(equation: core.JaxprEqn) -> float | None:
    """FLOPs of attention kernels that are opaque in the jaxpr; None for everything else."""
    name = equation.primitive.name
    if name in _CUDNN:
        return _CUDNN[name] * _causal_pairs(equation) * _shape(equation.invars[0])[-1]
    return _flash(equation) if name == "pallas_call" and equation.params["name"] in _FLASH else None


def _causal_pairs(equation: core.JaxprEqn) -> int:
    """Causal (query, key) pairs over all rows and heads."""
    batch, length, heads, _ = _shape(equation.invars[0])
    return batch * heads * length * (length + 1) // 2


# The same for `s1jax.model.attention.flash`, whose two backward kernels both compute the scores and their gradients.
_FLASH = {"flash_forward": 4.0, "flash_backward_queries": 6.0, "flash_backward_keys": 8.0}


def _flash(equation: core.JaxprEqn) -> float:
    """FLOPs of a kernel on rows of one segment: on average its loops over blocks end at the diagonal."""
    (batch, length, heads, size), keys = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
    name, grid = equation.params["name"], equation.params["grid_mapping"].grid
    block = (keys if name == "flash_backward_keys" else length) // grid[0]
    return _FLASH[name] * size * batch * heads * length * (keys + block) / 2


def _blocks_run(equation: core.JaxprEqn) -> float:
    """Blocks of a kernel's grid that are computed, for whole rows or (on average) for a device's share of them."""
    name, grid = equation.params["name"], equation.params["grid_mapping"].grid
    if not name.startswith("splash_mha"):
        raise ValueError(f"the blocks of the Pallas kernel {name} cannot be counted")
    # Forward (..., heads, queries, keys), backward (..., keys, heads, queries); none above the diagonal.
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    floats = [aval for aval in inputs if jnp.issubdtype(aval.dtype, jnp.floating)]
    q, k = (aval.shape[-2] for aval in floats[:2])
    queries, keys = (grid[-1], grid[-3]) if "dkv" in name else grid[-2:]
    return math.prod(grid) * (k + max(q // queries, k // keys)) / (2 * k)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def bodies(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs among an equation's parameters, except the functions of a custom derivative, which are not called."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
