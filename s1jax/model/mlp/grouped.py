"""The output of chosen experts: picks one of the implementations of this folder, then calls it.

None of them computes an expert for a token that did not choose it, except to fill up a block of rows.

Axis letters: B batch, T length, R tokens (B and T in one), k experts of a token, E experts, D model, F hidden width, S
sorted rows (`s1jax.model.mlp.groups`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from s1jax.model.linear import Adapted, Weight
from s1jax.model.mlp import few_rows, ragged, sorted_blocks
from s1jax.model.mlp import groups as groups_lib
from s1jax.model.mlp.expert_weights import Activation, ExpertWeights, RowAdapters, activate, adapted, joined

Implementation = Literal["loop", "blocks", "gather", "mosaic", "megablox", "megablox_interpreted"]
# (x [B, T, D], weights float32 [B, T, k], ids int32 [B, T, k], experts, activation) -> [B, T, D], as the decoder calls
# it: `apply` on one device, and what `s1jax.parallel.experts.apply` makes of it on a mesh.
Apply = Callable[[jax.Array, jax.Array, jax.Array, ExpertWeights, Activation], jax.Array]

_FEW_TOKENS = 8  # up to which a loop of single rows is faster on a CPU than blocks of rows
_BLOCK = (8, 32)  # smallest and largest rows of a small block


def apply(
    x: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    experts: ExpertWeights,
    activation: Activation,
    *,
    implementation: Implementation | None = None,
    platform: str | None = None,
    shares: int = 1,
) -> jax.Array:
    """Sums up what the chosen experts make of each token.

    Under a remat policy that saves the name `experts`, the outputs of gate and up are kept.

    Args:
      x: [B, T, D].
      weights: float32 [B, T, k].
      ids: int32 [B, T, k]; an expert outside of 0 to E - 1 adds nothing.
      experts: of E experts.
      activation: of their hidden values.
      implementation: None: `choose` does.
      platform: of the devices; None: the one that JAX runs on.
      shares: devices that the experts are spread over; each has E of them.

    Returns:
      [B, T, D] in the dtype of `x`: sum over k of weights * (output of the expert).
    """
    flat, weights, ids = (a.reshape(-1, a.shape[-1]) for a in (x, weights, ids))
    experts, adapters = experts.of_rows(len(flat))
    if implementation is None:
        implementation = choose(platform or jax.default_backend(), ids.shape[0], ids.shape[1], experts, x.dtype)
    match implementation:
        case "loop":
            y = few_rows.loop(flat, weights, ids, experts, activation, adapters)
        case "gather":
            y = few_rows.gather(flat, weights, ids, experts, activation, adapters)
        case _:
            y = _sorted(flat, weights, ids, experts, activation, adapters, implementation, shares)
    return y.reshape(x.shape)


def choose(
    platform: str, tokens: int, per_token: int, experts: ExpertWeights, dtype: jax.typing.DTypeLike
) -> Implementation:
    """Picks the implementation.

    `loop` (`few_rows.py`) and `blocks` (`sorted_blocks.py`) run on any backend, `gather` (`few_rows.py`) reads the
    weights of each token by itself, `mosaic` (`mosaic.py`) and `megablox` (`megablox.py`) are products of all sorted
    rows in one kernel of Hopper GPUs and of TPUs.

    Args:
      platform: `cpu`, `gpu` (or `cuda`) or `tpu`.
      tokens: R.
      per_token: k.
      experts: their weights; quantised ones are dequantised expert by expert.
      dtype: of activations.
    """
    if platform == "cpu":
        return "loop" if tokens <= _FEW_TOKENS else "blocks"
    if platform in ("gpu", "cuda"):
        if tokens * per_token <= experts.count:
            return "gather"
        return "mosaic" if experts.are_arrays and ragged.mosaic_takes(experts, dtype) else "blocks"
    return "megablox" if experts.are_arrays else "blocks"


def _sorted(
    x: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    experts: ExpertWeights,
    activation: Activation,
    adapters: RowAdapters | None,
    implementation: Implementation,
    shares: int,
) -> jax.Array:
    """`apply` for [R, D] over sorted rows.

    A token's weight multiplies the hidden values, not the output: the backward pass then needs no output, and remat
    does not compute it again. The rows of an expert are sorted by adapter, so that those of one follow each other, too.
    """
    size, chunk = block_size(ids.size, experts.count * shares), ragged.chunk(ids.size, shares)
    fill = size if implementation == "blocks" else -ids.size % chunk
    if adapters is None:
        by_adapter = groups = groups_lib.sort(ids, experts.count, fill)
    else:
        order = ids * adapters.count + adapters.chosen[:, None]
        by_adapter = groups_lib.sort(order, experts.count * adapters.count, fill)
        groups = groups_lib.joined(by_adapter, adapters.count)
    first: jax.Array | int = 0
    if implementation == "mosaic":
        experts = experts.own_layer()
    else:
        experts, first = experts.all_layers()

    def products_of(groups: groups_lib.Groups, count: int) -> Callable[..., tuple[jax.Array, ...]]:
        """The products of rows with weights that `count` groups have for each expert."""
        if implementation == "blocks":
            blocks = sorted_blocks.cut(groups, size, first * count, shares)
            return lambda rows, *weights: sorted_blocks.products(rows, weights, blocks)
        none = jnp.zeros(experts.count * count, jnp.int32)
        sizes = jax.lax.dynamic_update_slice_in_dim(none, groups.sizes, first * count, 0)
        return lambda rows, *weights: tuple(
            ragged.product(rows, weight, sizes, is_pair, implementation, chunk) for weight in weights
        )

    def multiply(rows: jax.Array, *weights: Weight) -> tuple[jax.Array, ...]:
        """The products of rows with several weights: one loop over experts if none has an adapter."""
        if not any(isinstance(weight, Adapted) for weight in weights):
            return products(rows, *weights)
        return tuple(with_adapter(rows, weight) for weight in weights)

    def with_adapter(rows: jax.Array, weight: Weight) -> jax.Array:
        def one(rows: jax.Array, weight: Weight) -> jax.Array:
            return products(rows, weight)[0]

        if not isinstance(weight, Adapted):
            return one(rows, weight)
        if adapters is None:
            return adapted(rows, weight, None, one, one)
        scale = adapters.scale[groups.order // ids.shape[1]][:, None]
        return adapted(rows, weight, scale, one, lambda rows, factor: of_adapter(rows, joined(factor))[0])

    is_pair = (jnp.arange(len(groups.order)) < groups.ends[-1])[:, None]
    bias = functools.partial(
        _of_rows, experts=groups.experts + first, by_index=implementation == "blocks", dtype=x.dtype
    )
    products = products_of(groups, 1)
    of_adapter = products if adapters is None else products_of(by_adapter, adapters.count)
    rows = groups_lib.spread(x, groups)
    gate, up = multiply(rows, experts.gate, experts.up)
    if experts.gate_bias is not None and experts.up_bias is not None:
        gate, up = gate + bias(experts.gate_bias), up + bias(experts.up_bias)
    gate, up = checkpoint_name(gate, "experts"), checkpoint_name(up, "experts")
    own = jnp.where(is_pair, weights.reshape(-1)[groups.order][:, None], 0)
    hidden = (activate(gate, up, activation) * own).astype(x.dtype)
    (y,) = multiply(hidden, experts.down)
    if experts.down_bias is not None:
        y = y + (bias(experts.down_bias) * own).astype(x.dtype)
    return groups_lib.gather(y, groups, x)


def block_size(pairs: int, experts: int) -> int:
    """Rows of a small block, a power of 2.

    It is at most a sixth of the rows that an expert has on average: the last block of an expert is half full on
    average, which adds at most a twelfth to the operations.
    """
    smallest, largest = _BLOCK
    return max(smallest, min(largest, 1 << max(0, (pairs // experts // 6).bit_length() - 1)))


def _of_rows(bias: jax.Array, experts: jax.Array, by_index: bool, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Biases [E, F] as [S, F], for the expert of each row. As a product, its gradient scatters nothing."""
    if by_index:
        return bias.astype(jnp.float32)[experts].astype(dtype)
    chosen = (experts[:, None] == jnp.arange(bias.shape[0])).astype(dtype)
    exact = jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None
    return jnp.matmul(chosen, bias.astype(dtype), precision=exact)
