"""The stack of layers under differentiation: what it keeps of a layer, and where the gradients of its weights go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# What a layer keeps for the backward pass; the rest is computed again. `none` keeps every product, so that only
# elementwise work is repeated (a step of benchmarks/train_step.py took 3.70 s, and 3.81 with all of that kept as well),
# `full` the layer's input, with a backward pass of its own; `save_dots` leaves out products with a batch axis, the
# attention scores.
POLICIES: dict[str, Any] = {
    "none": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names("attention")
    ),
    "full": None,
    "save_attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "save_dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
}

# (x [B, T, D], weights of one layer, what all layers share) -> [B, T, D].
Layer = Callable[[jax.Array, Any, Any], jax.Array]


def scan(layer: Layer, x: jax.Array, weights: Any, shared: Any, remat: str, sums: Any = None) -> jax.Array:
    """Runs the layers one after the other.

    Args:
      layer: computes one of them.
      x: [B, T, D], the input of the first.
      weights: tree of arrays [L, ...].
      shared: tree of arrays that every layer gets; they have no gradient.
      remat: one of `POLICIES`.
      sums: of gradients, a tree like `weights`, see `add_gradients`.

    Returns:
      [B, T, D], the output of the last.

    Raises:
      ValueError: for an unknown policy.
    """
    if remat not in POLICIES:
        raise ValueError(f"remat policy {remat!r} is unknown; use one of {', '.join(POLICIES)}")
    if remat == "full":
        return _scan_full(layer, x, weights, sums, shared)

    def body(x: jax.Array, one: Any) -> tuple[jax.Array, None]:
        return layer(x, one, shared), None

    body = jax.checkpoint(body, prevent_cse=False, policy=POLICIES[remat])
    return jax.lax.scan(body, x, weights if sums is None else add_gradients(weights, sums))[0]


@jax.custom_vjp
def add_gradients(weights: Any, sums: Any) -> Any:
    """Returns `weights`, and adds what gradients they get to `sums`.

    The gradient with respect to `sums` is `sums` plus that of the weights, which themselves have none. So gradients of
    several batches add up without ever being held beside their sum.
    """
    return weights


def _add_forward(weights: Any, sums: Any) -> tuple[Any, Any]:
    return weights, sums


def _add_backward(sums: Any, gradients: Any) -> tuple[None, Any]:
    return None, jax.tree.map(_add, sums, gradients)


add_gradients.defvjp(_add_forward, _add_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_full(layer: Layer, x: jax.Array, weights: Any, sums: Any, shared: Any) -> jax.Array:
    """`scan` that keeps the layers' inputs; its backward pass writes a layer's gradients where nothing else is needed.

    That is where its weights were or, with `sums`, where its sums were. `jax.grad` of a scan holds the gradients of all
    layers beside the weights: 0.95 GB more for Qwen2.5-7B in bfloat16 on 16 devices.
    """
    return _scan_forward(layer, x, weights, sums, shared)[0]


def _scan_forward(layer: Layer, x: jax.Array, weights: Any, sums: Any, shared: Any) -> tuple[jax.Array, Any]:
    def body(x: jax.Array, one: Any) -> tuple[jax.Array, jax.Array]:
        return layer(x, one, shared), x

    x, inputs = jax.lax.scan(body, x, weights)
    return x, (inputs, weights, sums, shared)


def _scan_backward(layer: Layer, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    inputs, weights, sums, shared = kept

    def body(carry: tuple[jax.Array, Any], xs: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, Any], None]:
        gradient, written = carry  # weights or sums of the layers to come, gradients of those that were
        x, index = xs
        own = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
        one = jax.tree.map(own, written if sums is None else weights)
        # Behind the barrier that this makes: without it 3 % more of Qwen2.5-0.5B is gathered on eight v5p.
        again = jax.checkpoint(lambda x, one: layer(x, one, shared))
        gradient, of_weights = jax.vjp(again, x, one)[1](gradient)
        if sums is not None:
            of_weights = jax.tree.map(_add, jax.tree.map(own, written), of_weights)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        return (gradient, jax.tree.map(put, written, of_weights)), None

    start = gradient, weights if sums is None else sums
    layers = jnp.arange(inputs.shape[0])
    (gradient, written), _ = jax.lax.scan(body, start, (inputs, layers), reverse=True)
    return (gradient, written, None, None) if sums is None else (gradient, None, written, None)


_scan_full.defvjp(_scan_forward, _scan_backward)


def _add(total: jax.Array, gradient: jax.Array) -> jax.Array:
    return total + gradient.astype(total.dtype)
