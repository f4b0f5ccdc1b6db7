"""Rows cut into blocks along their length, for loops that hold one block's intermediates at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def split(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [ceil(T / C), B, C, ...] for blocks of C = `block`, filled up with zeros."""
    count = -(-x.shape[1] // block)
    x = jnp.pad(x, [(0, 0), (0, count * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)


def join(blocks: jax.Array, length: int) -> jax.Array:
    """The inverse of `split`: [ceil(T / C), B, C, ...] -> [B, T, ...] for T = `length`."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
