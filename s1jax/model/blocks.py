"""Rows cut along their length, into blocks for loops or into parts for devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
    """The queries of a device that shares its rows with others.

    Attributes:
      places: int [devices, T], places in the row of every device's queries, ascending.
      index: int32 scalar, which of the devices has these queries.
      segment_ids: int32 [B, S] of the whole rows, as the keys have them.
    """

    places: np.ndarray
    index: jax.Array
    segment_ids: jax.Array

    @property
    def own(self) -> jax.Array:
        """int32 [T], the places of these queries."""
        return jnp.asarray(self.places, jnp.int32)[self.index]


def split(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [ceil(T / C), B, C, ...] for blocks of C = `block`, filled up with zeros."""
    count = -(-x.shape[1] // block)
    x = jnp.pad(x, [(0, 0), (0, count * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)


def join(blocks: jax.Array, length: int) -> jax.Array:
    """The inverse of `split`: [ceil(T / C), B, C, ...] -> [B, T, ...] for T = `length`."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
