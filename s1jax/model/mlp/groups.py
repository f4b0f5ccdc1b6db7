"""Tokens in the order of the experts that they pass.

A pair is a token with one of its k experts. Sorted by expert, the pairs of an expert follow each other, and one product
multiplies them with its weights.

Axis letters: R tokens, k experts of a token, P = R k pairs, S sorted rows (pairs, filled up), E experts, D width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """How sorted rows and tokens correspond.

    Rows of experts that are not here, and those that fill up, come after all others.

    Attributes:
      sizes: int32 [E], rows of each expert.
      order: int32 [S], the pair of each sorted row; 0 for those that fill up.
      places: int32 [P], the sorted row of each pair.
      experts: int32 [S], the expert of each row; one of them, no matter which, for rows that are nobody's.
    """

    sizes: jax.Array
    order: jax.Array
    places: jax.Array
    experts: jax.Array

    @property
    def ends(self) -> jax.Array:
        """int32 [E], the row after the last one of each expert."""
        return jnp.cumsum(self.sizes)


def sort(ids: jax.Array, num_experts: int, fill: int) -> Groups:
    """Sorts the pairs of tokens by expert; the pairs of one keep their order.

    Args:
      ids: int32 [R, k]; an expert outside of 0 to E - 1 is not here.
      num_experts: E.
      fill: rows that are added at the end.
    """
    flat = jnp.where((ids >= 0) & (ids < num_experts), ids, num_experts).reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    places = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32), unique_indices=True)
    sizes = jnp.sum(flat[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    order = jnp.pad(order, (0, fill))
    return Groups(sizes, order, places, jnp.minimum(flat[order], num_experts - 1))


def joined(groups: Groups, count: int) -> Groups:
    """The same rows with every `count` experts as one, such as an expert with each of its adapters."""
    sizes = jnp.sum(groups.sizes.reshape(-1, count), axis=1, dtype=jnp.int32)
    return dataclasses.replace(groups, sizes=sizes, experts=groups.experts // count)


@jax.custom_vjp
def spread(x: jax.Array, groups: Groups) -> jax.Array:
    """[R, D] -> [S, D], the token of each row. Gradients of a token add up in float32, without a scatter."""
    return x[groups.order // (groups.places.shape[0] // x.shape[0])]


@jax.custom_vjp
def gather(y: jax.Array, groups: Groups, like: jax.Array) -> jax.Array:
    """[S, D] -> [R, D] as `like` [R, D], the sum over the experts of a token in float32."""
    return jnp.sum(_of_tokens(y, groups, like.shape[0]), axis=1, dtype=jnp.float32).astype(like.dtype)


def _of_tokens(y: jax.Array, groups: Groups, tokens: int) -> jax.Array:
    """[S, D] -> [R, k, D]."""
    return y[groups.places].reshape(tokens, -1, y.shape[-1])


def _spread_forward(x: jax.Array, groups: Groups) -> tuple[jax.Array, tuple[Groups, jax.Array]]:
    return spread(x, groups), (groups, jnp.zeros((x.shape[0], 0), x.dtype))


def _spread_backward(kept: tuple[Groups, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    groups, like = kept
    return gather(gradient, groups, like), None


def _gather_forward(y: jax.Array, groups: Groups, like: jax.Array) -> tuple[jax.Array, tuple[Groups, jax.Array]]:
    return gather(y, groups, like), (groups, jnp.zeros(0, y.dtype))


def _gather_backward(kept: tuple[Groups, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    groups, like = kept
    return spread(gradient, groups).astype(like.dtype), None, None


spread.defvjp(_spread_forward, _spread_backward)
gather.defvjp(_gather_forward, _gather_backward)
