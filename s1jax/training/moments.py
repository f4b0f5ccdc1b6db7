"""Optimizer moments in 8 bits: a code for every value and a scale for every block of neighbours.

Codes are dense near zero, as in "8-bit Optimizers via Block-wise Quantization" (Dettmers et al. 2022, dynamic tree
quantisation) and bitsandbytes. They span seven decades below the largest value of a block: with evenly spaced codes,
small second moments would become zero, and their weights would take steps of any size.

Decade d, [0.1, 1] * 10**(d - 6), is cut into 2**d equal parts, or 2**(d + 1) for values that have no sign; a code
stands for the middle of its part. Code 0 is zero. A sign takes the upper half of the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 256  # values along the last axis that share a scale, at most
SMALLEST = 4096  # arrays of fewer values stay in float32, as in bitsandbytes
_DECADES = 7


def pack(x: jax.Array, signed: bool) -> Any:
    """A moment as {"codes": uint8 of its shape, "scales": float32 [..., blocks]}; small ones as they are, float32.

    The largest value of a block is exact. A second moment (not `signed`) above zero never becomes zero.
    """
    if x.size < SMALLEST:
        return x.astype(jnp.float32)
    blocks = x.reshape(*x.shape[:-1], -1, _block(x.shape[-1])).astype(jnp.float32)
    count, _, _ = _decade(_DECADES - 1, signed)
    scales = jnp.max(jnp.abs(blocks), -1) / (1 - 0.45 / count)  # the middle of the last part
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
    """Values from -1, or 0, to 1 -> uint8 codes.

    It is arithmetic, and no search in a table: it becomes a part of the loop that updates the weights.
    """
    size = jnp.abs(x)
    code = jnp.where(size > 0, 0 if signed else 1, 0)
    for decade in range(_DECADES):
        count, first, unit = _decade(decade, signed)
        place = jnp.floor((size / unit - 0.1) * (count / 0.9)).astype(jnp.int32)
        code = jnp.where(size >= 0.1 * unit, first + jnp.clip(place, 0, count - 1), code)
    return jnp.where(signed & (x < 0), code + 128, code).astype(jnp.uint8)


def decode(codes: jax.Array, signed: bool) -> jax.Array:
    """uint8 codes -> the values that they stand for, in float32."""
    code = codes.astype(jnp.int32)
    code = code % 128 if signed else code
    value = jnp.zeros(codes.shape, jnp.float32)
    for decade in range(_DECADES):
        count, first, unit = _decade(decade, signed)
        middle = (0.1 + (code - first + 0.5).astype(jnp.float32) * (0.9 / count)) * unit
        value = jnp.where(code >= first, middle, value)
    return jnp.where(signed & (codes >= 128), -value, value)


def _decade(decade: int, signed: bool) -> tuple[int, int, float]:
    """Number of codes of a decade, for one sign; the first of them; the upper end."""
    count = 2**decade if signed else 2 ** (decade + 1)
    return count, count if signed else count - 1, 10.0 ** (decade - _DECADES + 1)


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
