"""Counts the floating-point operations of a program's matrix products in its jaxpr.

The compilers' own figures count the body of a loop once, and custom calls not at all. A jaxpr has the length of every
scan.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax._src.interpreters import partial_eval as pe
from jax.extend import core

from s1jax.model.attention import dispatch
from s1jax.model.mlp import sorted_blocks
from s1jax.plan import expert_flops


def count(jaxpr: core.Jaxpr) -> float:
    """Counts the FLOPs of all `dot_general`s whose result is used: 2 per multiply-add, loops times their length.

    A condition costs as much as its more expensive branch. The body of `shard_map` counts once per device, that of a
    Pallas kernel once per block of its grid that is not skipped. The attention of cuDNN and of
    `s1jax.model.attention.flash` is counted by formula.

    Raises:
      ValueError: for a matrix product inside a loop of unknown length, and for an unknown Pallas kernel.
    """
    return _count(_used(jaxpr))


def _used(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The same without equations whose results nothing uses; inside a loop's body no other pass removes them.

    JAX itself would leave Pallas kernels in with all that they read, such as attention whose outcome is kept.
    """
    kept = {primitive: rule for primitive, rule in pe.dce_rules.items() if primitive.name == "pallas_call"}
    pe._dce_jaxpr.cache_clear()
    try:
        for primitive in kept:
            del pe.dce_rules[primitive]
        return pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]
    finally:
        pe.dce_rules.update(kept)
        pe._dce_jaxpr.cache_clear()


def _count(jaxpr: core.Jaxpr, window: int = 0, shares: int = 1) -> float:
    """`count` of all there is.

    Args:
      jaxpr: of a program, or of a part of it.
      window: of the layer's attention, if it is part of one.
      shares: devices that experts are spread over.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        scope = _WINDOW.search(str(equation.source_info.name_stack))
        own = int(scope[1]) if scope else window
        known = _by_formula(equation, own)
        if known is None:
            known = expert_flops.of(equation, shares)
        if known is not None:
            total += known
            continue
        inside = equation.params["mesh"].shape.get("tensor", 1) if name == "shard_map" else shares
        inner = [_count(_used(body), own, inside) for body in bodies(equation.params)]
        if name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contract)
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "while" and any(inner):
            if expected := _BLOCKS.findall(str(equation.source_info.name_stack)):
                total += float(expected[-1]) * sum(inner)
                continue
            raise ValueError("a matrix product is inside a loop whose length is not known beforehand")
        elif name == "cond":
            total += max(inner)
        elif name == "pallas_call":
            total += _blocks_run(equation, own) * sum(inner)
        elif name == "shard_map":
            total += equation.params["mesh"].size * sum(inner)
        else:
            total += sum(inner)
    return total


# Products per pair and H of cuDNN's attention: two forward; backward, the scores again and four more.
_CUDNN = {"dot_product_attention_fwd_wrapper": 4.0, "dot_product_attention_bwd_wrapper": 10.0}


_WINDOW = re.compile(rf"\b{dispatch.WINDOW}(\d+)\b")
_BLOCKS = re.compile(rf"{sorted_blocks.SCOPE}([\d.]+)")


def _by_formula(equation: core.JaxprEqn, window: int) -> float | None:
    """FLOPs of attention kernels that are opaque in the jaxpr; None for everything else."""
    name = equation.primitive.name
    if name in _CUDNN:
        return _CUDNN[name] * _causal_pairs(equation, window) * _shape(equation.invars[0])[-1]
    return _flash(equation, window) if name == "pallas_call" and equation.params["name"] in _FLASH else None


def _causal_pairs(equation: core.JaxprEqn, window: int) -> int:
    """Causal (query, key) pairs over all rows and heads, within the window if there is one."""
    batch, length, heads, _ = _shape(equation.invars[0])
    window = min(window or length, length)
    return batch * heads * (window * (window + 1) // 2 + (length - window) * window)


# The same for `s1jax.model.attention.flash`, whose two backward kernels both compute the scores and their gradients.
_FLASH = {"flash_forward": 4.0, "flash_backward_queries": 6.0, "flash_backward_keys": 8.0}


def _flash(equation: core.JaxprEqn, window: int) -> float:
    """FLOPs of a kernel on rows of one segment: its loops over blocks end at the diagonal, and begin in the window."""
    (batch, length, heads, size), keys = _shape(equation.invars[0]), _shape(equation.invars[1])[1]
    name, grid = equation.params["name"], equation.params["grid_mapping"].grid
    block = (keys if name == "flash_backward_keys" else length) // grid[0]
    seen = (keys + block) / 2  # by a query, on average
    if window:
        seen = min(seen, window + block)
    return _FLASH[name] * size * batch * heads * length * seen


def _blocks_run(equation: core.JaxprEqn, window: int) -> float:
    """Blocks of a kernel's grid that are computed, for whole rows or (on average) for a device's share of them."""
    name, mapping = equation.params["name"], equation.params["grid_mapping"]
    if not name.startswith("splash_mha"):
        raise ValueError(f"the blocks of the Pallas kernel {name} cannot be counted")
    # Forward (..., heads, queries, keys), backward (..., keys, heads, queries); the first inputs are queries and keys.
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    keys = [aval for aval in inputs if jnp.issubdtype(aval.dtype, jnp.floating)][1].shape[-2]
    query_block, key_block = (one.block_shape[-2].block_size for one in mapping.block_mappings[:2])
    grid = mapping.grid[:-1] if "dkv" not in name else (*mapping.grid[:-3], *mapping.grid[-2:])  # without the keys
    first = np.arange(0, keys, query_block)
    before = np.maximum(first - window + 1, 0) // key_block if window else 0
    seen = np.minimum(first + query_block, keys) - 1
    return float(math.prod(grid) * np.mean(seen // key_block + 1 - before))


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
