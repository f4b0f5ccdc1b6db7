"""Products of sorted rows with the weights of their experts, one block of rows of one expert after the other.

The loop runs over the blocks that have rows, on any backend: experts without tokens cost nothing. XLA computes
`jax.lax.ragged_dot` on CPUs and GPUs for all experts and all rows: 16 times the operations with 16 experts.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs, C rows of a block.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from s1jax.model import linear
from s1jax.model.linear import Weight
from s1jax.model.mlp.expert_weights import of_expert
from s1jax.model.mlp.groups import Groups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Which rows each block has; `size` at most, of one expert.

    Attributes:
      experts: int32 [blocks at most], expert of a block.
      starts: int32 [blocks at most], its first row.
      ends: int32 [blocks at most], the row after the last one of its expert.
      count: int32 scalar, number of blocks.
      size: C.
    """

    experts: jax.Array
    starts: jax.Array
    ends: jax.Array
    count: jax.Array
    size: int = dataclasses.field(metadata={"static": True})


def cut(groups: Groups, size: int) -> Blocks:
    """Cuts the rows of every expert into blocks of C = `size`; the last one of an expert may have fewer."""
    experts = groups.sizes.shape[0]
    most = groups.places.shape[0] // size + experts
    ends = groups.ends
    until = jnp.cumsum(-(-groups.sizes // size))  # blocks up to each expert's last
    numbers = jnp.arange(most, dtype=jnp.int32)
    expert = jnp.sum(until[None] <= numbers[:, None], axis=1, dtype=jnp.int32)
    expert = jnp.minimum(expert, experts - 1)
    before = until - (-(-groups.sizes // size))
    starts = (ends - groups.sizes)[expert] + (numbers - before[expert]) * size
    return Blocks(expert, starts.astype(jnp.int32), ends[expert].astype(jnp.int32), until[-1].astype(jnp.int32), size)


@functools.partial(jax.jit, inline=False)
def expert_blocks(x: jax.Array, weight: Weight, blocks: Blocks, out: jax.Array) -> jax.Array:
    """`product`; the name by which `s1jax.plan.flops` knows the loop."""

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice_in_dim(x, blocks.starts[i], blocks.size)
        y = linear.matmul(rows, of_expert(weight, blocks.experts[i]))
        return _put(out, y, blocks, i)

    return jax.lax.fori_loop(0, blocks.count, body, out)


@jax.custom_vjp
def product(x: jax.Array, weight: Weight, blocks: Blocks) -> jax.Array:
    """Multiplies sorted rows with the weight of their expert.

    Args:
      x: [S, D], with at least C rows after the last pair.
      weight: of type `s1jax.model.linear.Weight`, with an axis E before its others. Only arrays have a gradient, which
        adds up in float32.
      blocks: of the rows.

    Returns:
      [S, F] in the dtype of `x`; 0 for rows that no expert has.
    """
    shape = jax.eval_shape(lambda x, w: linear.matmul(x, of_expert(w, jnp.int32(0))), x, weight)
    return expert_blocks(x, weight, blocks, jnp.zeros(shape.shape, shape.dtype))


def _forward(*arguments: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    """Each array comes with whether it has a gradient: that of a frozen weight is not computed."""
    is_leaf = lambda leaf: isinstance(leaf, CustomVJPPrimal)  # noqa: E731
    trained = any(leaf.perturbed for leaf in jax.tree.leaves(arguments[1], is_leaf=is_leaf))
    x, weight, blocks = jax.tree.map(lambda leaf: leaf.value, arguments, is_leaf=is_leaf)
    return product(x, weight, blocks), (x, weight, blocks, jnp.zeros(()) if trained else None)


def _backward(kept: tuple[Any, ...], gradient: jax.Array | SymbolicZero) -> tuple[Any, ...]:
    x, weight, blocks, trained = kept
    if isinstance(gradient, SymbolicZero):
        gradient = jnp.zeros(gradient.shape, gradient.dtype)
    learns = trained is not None and isinstance(weight, jax.Array)
    of_weight = jnp.zeros(weight.shape, jnp.float32) if learns else None
    of_x, of_weight = expert_blocks_backward(x, weight, blocks, gradient, jnp.zeros_like(x), of_weight)
    return of_x, None if of_weight is None else of_weight.astype(weight.dtype), None


@functools.partial(jax.jit, inline=False)
def expert_blocks_backward(
    x: jax.Array, weight: Weight, blocks: Blocks, gradient: jax.Array, of_x: jax.Array, of_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients of `product`; the name by which `s1jax.plan.flops` knows the loop."""

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        of_x, of_weight = carry
        expert, start = blocks.experts[i], blocks.starts[i]
        rows, own = (jax.lax.dynamic_slice_in_dim(a, start, blocks.size) for a in (x, gradient))
        one = of_expert(weight, expert)
        of_x = _put(of_x, jax.vjp(lambda rows: linear.matmul(rows, one), rows)[1](own)[0], blocks, i)
        if of_weight is not None:
            more = jnp.matmul(rows.T, _own(own, blocks, i), preferred_element_type=jnp.float32)
            total = jax.lax.dynamic_index_in_dim(of_weight, expert, keepdims=False) + more
            of_weight = jax.lax.dynamic_update_index_in_dim(of_weight, total, expert, 0)
        return of_x, of_weight

    return jax.lax.fori_loop(0, blocks.count, body, (of_x, of_weight))


product.defvjp(_forward, _backward, symbolic_zeros=True)


def _own(rows: jax.Array, blocks: Blocks, i: jax.Array) -> jax.Array:
    """Rows [C, F] with 0 for those of other experts."""
    places = blocks.starts[i] + jnp.arange(blocks.size)
    return jnp.where((places < blocks.ends[i])[:, None], rows, 0)


def _put(out: jax.Array, rows: jax.Array, blocks: Blocks, i: jax.Array) -> jax.Array:
    """Writes a block; rows after its end become 0 until the next block writes them."""
    return jax.lax.dynamic_update_slice_in_dim(out, _own(rows, blocks, i).astype(out.dtype), blocks.starts[i], axis=0)
