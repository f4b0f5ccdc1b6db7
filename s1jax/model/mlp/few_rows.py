"""Experts of few tokens, as in a decode step: the weights of the experts in use are read, and no others.

Axis letters: R tokens, k experts of a token, E experts, D model, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.model import linear
from s1jax.model.linear import Adapted, Weight
from s1jax.model.mlp import groups as groups_lib
from s1jax.model.mlp.expert_weights import Activation, ExpertWeights, RowAdapters, activate, adapted, of_expert
from s1jax.model.quant import QTensor
from s1jax.model.quant_groups import GroupQTensor


def loop(
    x: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    experts: ExpertWeights,
    activation: Activation,
    adapters: RowAdapters | None,
) -> jax.Array:
    """One token with one expert after the other, for CPUs.

    Arguments are those of `s1jax.model.mlp.grouped.apply` for [R, D], with experts and adapters of
    `ExpertWeights.of_rows`.

    A CPU copies what it gathers. With E 32, k 4, D 256, F 128 and 16 tokens, gathering the weights of every token took
    25 times as long.
    """
    groups = groups_lib.sort(ids, experts.count, fill=0)
    experts, first = experts.all_layers()
    of_pair = weights.reshape(-1)

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        pair, expert = groups.order[i], groups.experts[i]
        token = pair // ids.shape[1]
        adapter, scale = (None, None) if adapters is None else (adapters.chosen[token], adapters.scale[token])
        row, one = jax.lax.dynamic_slice_in_dim(x, token, 1), of_expert(experts, first + expert, adapter)

        def affine(row: jax.Array, weight: Weight, bias: jax.Array | None) -> jax.Array:
            y = _adapted(row, weight, scale, linear.matmul)
            return y if bias is None else y + bias.astype(y.dtype)

        gate, up = affine(row, one.gate, one.gate_bias), affine(row, one.up, one.up_bias)
        y = affine(activate(gate, up, activation), one.down, one.down_bias).astype(jnp.float32) * of_pair[pair]
        y += jax.lax.dynamic_slice_in_dim(out, token, 1)
        return jax.lax.dynamic_update_slice_in_dim(out, y, token, axis=0)

    return jax.lax.fori_loop(0, groups.ends[-1], body, jnp.zeros(x.shape, jnp.float32)).astype(x.dtype)


def gather(
    x: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    experts: ExpertWeights,
    activation: Activation,
    adapters: RowAdapters | None,
) -> jax.Array:
    """All of them at once over gathered weights, which a GPU reads in place; arguments as of `loop`."""
    here = (ids >= 0) & (ids < experts.count)
    experts, first = experts.all_layers()
    ids = first + jnp.where(here, ids, 0)
    chosen = scale = None
    if adapters is not None:
        chosen, scale = jnp.broadcast_to(adapters.chosen[:, None], ids.shape), adapters.scale[:, None, None]
    own = of_expert(experts, ids, chosen)

    def product(rows: jax.Array, weight: Weight, bias: jax.Array | None) -> jax.Array:
        y = _adapted(rows, weight, scale, _product)
        return y.astype(x.dtype) if bias is None else (y + bias.astype(jnp.float32)).astype(x.dtype)

    rows = jnp.broadcast_to(x[:, None], (*ids.shape, x.shape[-1]))
    gate, up = product(rows, own.gate, own.gate_bias), product(rows, own.up, own.up_bias)
    y = product(activate(gate, up, activation), own.down, own.down_bias)
    return jnp.einsum("rkd,rk->rd", y.astype(jnp.float32), jnp.where(here, weights, 0)).astype(x.dtype)


def _product(rows: jax.Array, weight: Weight) -> jax.Array:
    """[R, k, D] with gathered kernels [R, k, D, F] of any type -> float32 [R, k, F]."""
    return jnp.einsum("rkd,rkdf->rkf", rows, _float(weight, rows.dtype), preferred_element_type=jnp.float32)


def _adapted(
    rows: jax.Array,
    weight: Weight,
    scale: jax.Array | None,
    product: Callable[[jax.Array, Weight], jax.Array],
) -> jax.Array:
    return adapted(rows, weight, scale, product, product) if isinstance(weight, Adapted) else product(rows, weight)


def _float(weight: Weight, dtype: DTypeLike) -> jax.Array:
    """Gathered kernels [R, k, D, F] as an array."""
    match weight:
        case QTensor():
            return weight.values.astype(dtype) * jnp.expand_dims(weight.scale, weight.axis).astype(dtype)
        case GroupQTensor():
            return weight.dequantize(dtype)
        case jax.Array():
            return weight.astype(dtype)
        case _:
            raise ValueError(f"experts of type {type(weight).__name__} cannot be gathered")
