"""Products between heads and the latent vector that keys and values of `MLA` come from.

A key of head n is c W_n, with the latent vector c. So a query q meets it as (q W_nᵀ) c, and a mean of values is W_n
times the mean of c. Scores and means need c alone, and keys and values of the heads never exist.

Axis letters: B batch, T length, N heads, H dimension of a head's key or value, R kv_rank; A adapters, K their rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.model.layouts import TransposedKernel
from s1jax.model.linear import Adapted, BatchAdapted, Weight
from s1jax.model.quant import QTensor
from s1jax.model.quant_cpu import IntegerKernel
from s1jax.model.quant_groups import GroupQTensor


def to_latent(x: jax.Array, weight: Weight) -> jax.Array:
    """Queries of heads as queries of the latent vector.

    Args:
      x: [B, T, N, H].
      weight: of the projection R -> (N, H), [R, N, H] or another type of such a kernel.

    Returns:
      [B, T, N, R] in the dtype of `x`.
    """
    assert not isinstance(weight, Adapted)  # of training alone, which has no cache
    if isinstance(weight, BatchAdapted):
        y = to_latent(x, weight.weight)
        if weight.chosen is None:
            return y
        b = weight.b.astype(x.dtype).reshape(*weight.b.shape[:2], *x.shape[2:])
        inner = jnp.einsum("btnh,aknh->btnak", x, b) * _own(weight, x.dtype)
        return y + jnp.einsum("btnak,ark->btnr", inner, weight.a.astype(x.dtype))
    if isinstance(weight, GroupQTensor):
        weight = weight.dequantize(x.dtype)
    if isinstance(weight, QTensor):  # one scale for each output of the projection, which are the inputs here
        x, weight = (x * weight.scale.astype(x.dtype)), weight.values
    if isinstance(weight, TransposedKernel):
        return jnp.einsum("btnh,nhr->btnr", x, weight.matrix.astype(x.dtype).reshape(*x.shape[2:], -1))
    assert not isinstance(weight, IntegerKernel)  # `layouts.unstack` makes none of these projections
    return jnp.einsum("btnh,rnh->btnr", x, weight.astype(x.dtype))


def from_latent(x: jax.Array, weight: Weight) -> jax.Array:
    """Means of the latent vector, one for each head, as means of the heads' values.

    Args:
      x: [B, T, N, R].
      weight: of the projection R -> (N, H), [R, N, H] or another type of such a kernel.

    Returns:
      [B, T, N, H] in the dtype of `x`.
    """
    heads, rank = x.shape[2:]
    assert not isinstance(weight, Adapted)
    if isinstance(weight, BatchAdapted):
        y = from_latent(x, weight.weight)
        if weight.chosen is None:
            return y
        b = weight.b.astype(x.dtype).reshape(*weight.b.shape[:2], *y.shape[2:])
        inner = jnp.einsum("btnr,ark->btnak", x, weight.a.astype(x.dtype)) * _own(weight, x.dtype)
        return y + jnp.einsum("btnak,aknh->btnh", inner, b)
    if isinstance(weight, GroupQTensor):
        weight = weight.dequantize(x.dtype)
    if isinstance(weight, TransposedKernel):
        return jnp.einsum("btnr,nhr->btnh", x, weight.matrix.astype(x.dtype).reshape(heads, -1, rank))
    if isinstance(weight, QTensor):
        means = jnp.einsum("btnr,rnh->btnh", x, weight.values.astype(x.dtype), preferred_element_type=jnp.float32)
        return (means * weight.scale).astype(x.dtype)
    assert not isinstance(weight, IntegerKernel)
    return jnp.einsum("btnr,rnh->btnh", x, weight.astype(x.dtype))


def _own(weight: BatchAdapted, dtype: DTypeLike) -> jax.Array:
    """[B, 1, 1, A, 1], what products with adapters are multiplied with."""
    return weight.own()[:, None, None, :, None].astype(dtype)
