"""Lookup of token embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from s1jax.model import quant_cpu
from s1jax.model.layouts import TransposedKernel
from s1jax.model.linear import Adapted, BatchAdapted, Weight
from s1jax.model.quant import QTensor
from s1jax.model.quant_cpu import IntegerKernel
from s1jax.model.quant_groups import GroupQTensor

# (embedding [V, D], int32 tokens [B, T]) -> [B, T, D]: `lookup` on one device, `s1jax.parallel.ops.lookup` on a mesh.
Lookup = Callable[[jax.Array, jax.Array], jax.Array]


@jax.custom_vjp
def lookup(embedding: jax.Array, tokens: jax.Array) -> jax.Array:
    """[V, D], int32 [B, T] -> [B, T, D], the tokens' rows.

    The gradients of a row add up in float32: in bfloat16 the sum of a thousand ones is 256, and gradients of frequent
    tokens were off by a quarter (tests/training/test_step.py).
    """
    return embedding[tokens]


def _lookup_forward(embedding: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return embedding[tokens], (embedding, tokens)


def _lookup_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    embedding, tokens = kept
    total = jnp.zeros(embedding.shape, jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
    return total.astype(embedding.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def embed(embedding: Weight, tokens: jax.Array, dtype: DTypeLike, lookup: Lookup = lookup) -> jax.Array:
    """Looks tokens up in an embedding of any type.

    Args:
      embedding: [V, D].
      tokens: int32 [B, T].
      dtype: of the result.
      lookup: of an array.

    Returns:
      [B, T, D].
    """
    match embedding:
        case QTensor():
            return lookup(embedding.values, tokens).astype(dtype) * embedding.scale[tokens][..., None].astype(dtype)
        case GroupQTensor():
            rows = dataclasses.replace(
                embedding, codes=lookup(embedding.codes, tokens), scales=lookup(embedding.scales, tokens)
            )
            return rows.dequantize(dtype)
        case IntegerKernel():
            return quant_cpu.rows_of(embedding, tokens).astype(dtype)
        case TransposedKernel():
            return lookup(embedding.matrix, tokens).astype(dtype)
        case _:
            assert not isinstance(embedding, Adapted | BatchAdapted)
            return lookup(embedding, tokens).astype(dtype)
