"""Optimizer moments in 8 bits: a code for every value and a scale for every block of neighbours.

A code c stands for scale * (c / 127)**3, and for scale * (c / 255)**4 of values that have no sign. Powers make codes
dense near zero, as the decades of bitsandbytes' dynamic map do ("8-bit Optimizers via Block-wise Quantization",
Dettmers et al. 2022). On the same gradients weights end nearer to those of float32 moments than with that map
(tests/training/test_moments.py), because errors grow less towards zero, and because no second moment becomes zero:
its weight would take steps of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 256  # values along the last axis that share a scale, at most
SMALLEST = 4096  # arrays of fewer values stay in float32, as in bitsandbytes


def pack(x: jax.Array, signed: bool) -> Any:
    """A moment as {"codes": int8 or uint8 of its shape, "scales": float32 [..., blocks]}; small ones stay float32.

    Codes of moments that are not `signed` are uint8. The largest value of a block is exact. A second moment above zero
    never becomes zero.
    """
    if x.size < SMALLEST:
        return x.astype(jnp.float32)
    blocks = x.reshape(*x.shape[:-1], -1, _block(x.shape[-1])).astype(jnp.float32)
    scales = jnp.max(jnp.abs(blocks), -1)
    codes = encode(blocks / jnp.where(scales > 0, scales, 1)[..., None], signed)
    return {"codes": codes.reshape(x.shape), "scales": scales}


def unpack(moment: Any, signed: bool) -> jax.Array:
    """The moment that `pack` was given, in float32."""
    if not is_packed(moment):
        return moment
    codes, scales = moment["codes"], moment["scales"]
    blocks = decode(codes.reshape(*scales.shape, -1), signed) * scales[..., None]
    return blocks.reshape(codes.shape)


def encode(x: jax.Array, signed: bool) -> jax.Array:
    """Values from -1 to 1 -> int8 codes; those from 0 to 1 -> uint8 codes."""
    if signed:
        return jnp.round(127 * jnp.cbrt(x)).astype(jnp.int8)
    code = jnp.round(255 * jnp.sqrt(jnp.sqrt(x)))
    return jnp.where(x > 0, jnp.maximum(code, 1), 0).astype(jnp.uint8)


def decode(codes: jax.Array, signed: bool) -> jax.Array:
    """Codes -> the values that they stand for, in float32."""
    root = codes.astype(jnp.float32) / (127 if signed else 255)
    return root * root * root if signed else jnp.square(jnp.square(root))


def is_packed(node: Any) -> bool:
    """Whether a node of an optimizer's state is a moment in 8 bits."""
    return isinstance(node, dict) and set(node) == {"codes", "scales"}


def change(state: Any, function: Callable[[Any, bool], Any]) -> Any:
    """An optimizer's state with `function(moment, signed)` in place of every moment."""

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        # A moment's path ends in the name of its weight; everything else (counts, coefficients) stays.
        if not path or not isinstance(path[-1], jax.tree_util.DictKey):
            return leaf
        return function(leaf, not any(getattr(entry, "name", "") == "nu" for entry in path))

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=is_packed)


def _block(size: int) -> int:
    """The largest divisor of an axis that is at most `BLOCK`."""
    return next(block for block in range(min(BLOCK, size), 0, -1) if size % block == 0)
