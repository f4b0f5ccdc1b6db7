"""Products of sorted rows with the weights of their experts, one block of rows of one expert after the other.

Loops run over the experts that have rows and over the blocks of each, on any backend: experts without tokens cost
nothing. XLA computes `jax.lax.ragged_dot` on CPUs and GPUs for all experts and all rows: 16 times the operations with
16 experts. Most rows of an expert are in large blocks, which are full. Small blocks have the rest, so that few rows are
added. The weights of an expert are cut out of those of all experts once, not for every block: a CPU copies them.

Axis letters: S sorted rows (`s1jax.model.mlp.groups`), E experts, D inputs, F outputs, C rows of a block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from s1jax.model import linear
from s1jax.model.linear import Weight
from s1jax.model.mlp.expert_weights import of_expert
from s1jax.model.mlp.groups import Groups

SCOPE = "expert_blocks_"  # and how often a loop is expected to run: `s1jax.plan` reads it there
_LARGE = 4  # times the rows of a small block
_T = TypeVar("_T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The rows of experts, in blocks of two sizes.

    Attributes:
      used: int32 [E], the experts that have rows, from the first row on, and then any others.
      count: int32 scalar, number of experts that have rows.
      starts: int32 [E], the first row of each expert.
      ends: int32 [E], the row after its last one.
      first: int32 scalar, the place of expert 0 among the weights.
      size: C of small blocks.
      rows: of an expert, on average over all tokens' choices.
    """

    used: jax.Array
    count: jax.Array
    starts: jax.Array
    ends: jax.Array
    first: jax.Array | int
    size: int = dataclasses.field(metadata={"static": True})
    rows: float = dataclasses.field(metadata={"static": True})

    def for_experts(self, body: Callable[[jax.Array, _T], _T], init: _T) -> _T:
        """Runs the body for the number of each expert that has rows."""
        experts = self.starts.shape[0]
        return _loop(self.count, min(experts, experts * self.rows), lambda i, carry: body(self.used[i], carry), init)

    def for_blocks(self, expert: jax.Array, body: Callable[[Block, _T], _T], init: _T) -> _T:
        """Runs the body for each block of an expert: first the large ones, then the small ones that have the rest."""
        large, end = self.size * _LARGE, self.ends[expert]
        in_small = min(self.rows, large / 2)  # on average
        start = self.starts[expert]
        full = (end - start) // large
        init = _loop(
            full,
            (self.rows - in_small) / large,
            lambda i, carry: body(Block(start + i * large, end, large), carry),
            init,
        )
        start += full * large
        rest = -(-(end - start) // self.size)
        return _loop(
            rest,
            in_small / self.size + 0.5,
            lambda i, carry: body(Block(start + i * self.size, end, self.size), carry),
            init,
        )


def _loop(count: jax.Array, expected: float, body: Callable[[jax.Array, _T], _T], init: _T) -> _T:
    with jax.named_scope(f"{SCOPE}{expected:.2f}"):
        result: _T = jax.lax.fori_loop(0, count, body, init)
    return result


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of one expert from `start` on, up to `size`; the expert's rows end before `end`."""

    start: jax.Array
    end: jax.Array
    size: int

    def of(self, rows: jax.Array) -> jax.Array:
        """[S, D] -> [C, D]; the last ones may be other experts' rows."""
        return jax.lax.dynamic_slice_in_dim(rows, self.start, self.size)

    def own(self, rows: jax.Array) -> jax.Array:
        """Rows [C, F] with 0 for those of other experts."""
        return jnp.where((self.start + jnp.arange(self.size) < self.end)[:, None], rows, 0)

    def put(self, out: jax.Array, rows: jax.Array) -> jax.Array:
        """Writes rows [C, F] to [S, F]; those of the next experts become 0 until their own blocks write them."""
        return jax.lax.dynamic_update_slice_in_dim(out, self.own(rows).astype(out.dtype), self.start, axis=0)


def cut(groups: Groups, size: int, first: jax.Array | int = 0, shares: int = 1) -> Blocks:
    """Cuts the rows of every expert into blocks.

    Args:
      groups: of the rows.
      size: C of small blocks.
      first: int32 scalar, the place of expert 0 among the weights.
      shares: devices that the experts are spread over.
    """
    experts = groups.sizes.shape[0]
    used = jnp.nonzero(groups.sizes, size=experts)[0].astype(jnp.int32)
    count = jnp.sum(groups.sizes > 0, dtype=jnp.int32)
    rows = groups.places.shape[0] / (experts * shares)
    return Blocks(used, count, groups.ends - groups.sizes, groups.ends, first, size, rows)


@jax.custom_vjp
def products(x: jax.Array, weights: tuple[Weight, ...], blocks: Blocks) -> tuple[jax.Array, ...]:
    """Multiplies sorted rows with weights of their expert.

    Args:
      x: [S, D], with at least C rows after the last pair.
      weights: of type `s1jax.model.linear.Weight`, with an axis E before their others. Only arrays have a gradient,
        which adds up in float32.
      blocks: of the rows.

    Returns:
      For each weight [S, F] in the dtype of `x`; 0 for rows that no expert has.
    """

    def one(expert: jax.Array, out: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        own = of_expert(weights, blocks.first + expert)

        def body(block: Block, out: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            rows = block.of(x)
            return tuple(block.put(a, linear.matmul(rows, weight)) for a, weight in zip(out, own, strict=True))

        return blocks.for_blocks(expert, body, out)

    shapes = jax.eval_shape(lambda x, ws: [linear.matmul(x, of_expert(w, jnp.int32(0))) for w in ws], x, weights)
    return blocks.for_experts(one, tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes))


def _forward(*arguments: Any) -> tuple[tuple[jax.Array, ...], tuple[Any, ...]]:
    """Each array comes with whether it has a gradient: that of a frozen weight is not computed."""
    is_leaf = lambda leaf: isinstance(leaf, CustomVJPPrimal)  # noqa: E731
    # None or an array for each weight: a bool would be traced.
    trained = tuple(
        jnp.zeros(()) if any(leaf.perturbed for leaf in jax.tree.leaves(weight, is_leaf=is_leaf)) else None
        for weight in arguments[1]
    )
    x, weights, blocks = jax.tree.map(lambda leaf: leaf.value, arguments, is_leaf=is_leaf)
    return products(x, weights, blocks), (x, weights, blocks, trained)


def _backward(kept: tuple[Any, ...], gradients: tuple[jax.Array | SymbolicZero, ...]) -> tuple[Any, ...]:
    x, weights, blocks, trained = kept
    incoming = [jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in gradients]
    learns = [t is not None and isinstance(w, jax.Array) for w, t in zip(weights, trained, strict=True)]

    def one(expert: jax.Array, carry: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
        own = of_expert(weights, blocks.first + expert)

        def body(block: Block, carry: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
            of_x, totals = carry
            rows, more = block.of(x), []
            for weight, gradient in zip(own, incoming, strict=True):
                back = jax.vjp(lambda rows, weight=weight: linear.matmul(rows, weight), rows)[1]
                more += back(block.of(gradient))
            totals = [
                None
                if a is None
                else a + jnp.matmul(rows.T, block.own(block.of(g)), preferred_element_type=jnp.float32)
                for a, g in zip(totals, incoming, strict=True)
            ]
            return block.put(of_x, functools.reduce(jnp.add, more)), totals

        zeros = [jnp.zeros(w.shape, jnp.float32) if yes else None for w, yes in zip(own, learns, strict=True)]
        of_x, totals = blocks.for_blocks(expert, body, (carry[0], zeros))
        place = blocks.first + expert
        sums = [
            None if a is None else jax.lax.dynamic_update_index_in_dim(a, total, place, 0)
            for a, total in zip(carry[1], totals, strict=True)
        ]
        return of_x, sums

    sums = [jnp.zeros(w.shape, jnp.float32) if yes else None for w, yes in zip(weights, learns, strict=True)]
    of_x, sums = blocks.for_experts(one, (jnp.zeros_like(x), sums))
    return of_x, tuple(a if a is None else a.astype(w.dtype) for a, w in zip(sums, weights, strict=True)), None


products.defvjp(_forward, _backward, symbolic_zeros=True)
