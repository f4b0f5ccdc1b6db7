"""The stack of layers under differentiation: what it keeps of a layer, and where the gradients of its weights go."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # a tree of arrays
# (x [B, T, D], weights of one layer, what all layers share, frozen weights of one layer) -> [B, T, D].
Layer = Callable[[jax.Array, Tree, Tree, Tree], tuple[jax.Array, Tree]]
_Policy = Callable[..., Any]


def _keep(*names: str) -> _Policy:
    """A policy that keeps values by name, attention among them in any case, and a layer's output inside a pattern."""
    named = jax.checkpoint_policies.save_only_these_names("attention", "layer", *names)
    return jax.checkpoint_policies.save_from_both_policies(named, _attention_of_cudnn)


def _attention_of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps outcome and log-sum-exp of cuDNN's attention, for JAX names nothing inside of it."""
    return bool(primitive.name == "dot_product_attention_fwd_wrapper")


# What a layer keeps for the backward pass; the rest is computed again. `full` keeps the layer's input and has its own
# backward pass. `save_attention` keeps what attention makes as well, `save_projections` the products around it, too,
# `save_dots` all large products: those of the MLP or of experts are most of them. `none` keeps every product, so that
# only elementwise work is repeated: a step of benchmarks/train_step.py took 3.70 s, and 3.81 s if elementwise results
# were kept as well.
POLICIES: dict[str, _Policy | None] = {
    "none": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, _keep("projections", "experts", "mlp")
    ),
    "full": None,
    "save_attention": _keep(),
    "save_projections": _keep("projections"),
    "save_dots": _keep("projections", "experts", "mlp"),
}


def scan(
    layer: Layer,
    x: jax.Array,
    weights: Tree,
    shared: Tree,
    policies: Sequence[str],
    sums: Tree | None = None,
    frozen: Tree | None = None,
) -> tuple[jax.Array, Tree]:
    """Runs layers one after the other.

    Args:
      layer: computes one of them, or one repeat of a pattern of layers. Beside its output it gives a tree of arrays, or
        None.
      x: [B, T, D], the input of the first.
      weights: tree of arrays [L, ...].
      shared: tree of arrays that every layer gets; they have no gradient.
      policies: L of `POLICIES`.
      sums: of gradients, a tree like `weights`, see `add_gradients`.
      frozen: another tree of arrays [L, ...]; they have no gradient, and no memory is taken for any.

    Returns:
      [B, T, D], the output of the last, and what the layers gave beside theirs as a tree of arrays [L, ...].
    """
    found, first = [], 0
    for policy, equal in itertools.groupby(policies):
        end = first + len(list(equal))
        cut = functools.partial(_cut, first=first, end=end, whole=len(policies))
        its, its_sums = jax.tree.map(cut, weights), jax.tree.map(cut, sums)
        if policy == "full":
            x, beside = _scan_full(layer, first, x, its, its_sums, shared, frozen)
        else:
            x, beside = _scan(layer, first, x, its, its_sums, shared, frozen, POLICIES[policy])
        found.append(beside)
        first = end
    return x, found[0] if len(found) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def _cut(x: jax.Array, first: int, end: int, whole: int) -> jax.Array:
    return x if end - first == whole else x[first:end]


def _own(frozen: Tree, index: jax.Array) -> Tree:
    """One layer's arrays; a slice of several layers would be a copy of them."""
    return jax.tree.map(functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False), frozen)


def _scan(
    layer: Layer,
    first: int,
    x: jax.Array,
    weights: Tree,
    sums: Tree | None,
    shared: Tree,
    frozen: Tree | None,
    policy: _Policy | None,
) -> tuple[jax.Array, Tree]:
    """`scan` of layers with one policy, those from `first` on of the frozen ones."""
    frozen = jax.lax.stop_gradient(frozen)

    def body(x: jax.Array, one: tuple[Tree, jax.Array]) -> tuple[jax.Array, Tree]:
        return layer(x, one[0], shared, _own(frozen, one[1]))

    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    weights = weights if sums is None else add_gradients(weights, sums)
    return jax.lax.scan(body, x, (weights, first + jnp.arange(_count(weights))))


def _count(weights: Tree) -> int:
    count: int = jax.tree.leaves(weights)[0].shape[0]
    return count


@jax.custom_vjp
def add_gradients(weights: Tree, sums: Tree) -> Tree:
    """Returns `weights`, and adds what gradients they get to `sums`.

    The gradient with respect to `sums` is `sums` plus the gradient of the weights; the weights themselves get none. So
    the gradients of several batches add up, and none is ever held beside their sum.
    """
    return weights


def _add_forward(weights: Tree, sums: Tree) -> tuple[Tree, Tree]:
    return weights, sums


def _add_backward(sums: Tree, gradients: Tree) -> tuple[None, Tree]:
    return None, jax.tree.map(_add, sums, gradients)


add_gradients.defvjp(_add_forward, _add_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan_full(
    layer: Layer, first: int, x: jax.Array, weights: Tree, sums: Tree, shared: Tree, frozen: Tree
) -> tuple[jax.Array, Tree]:
    """`_scan` that keeps the layers' inputs; its backward pass reuses memory for the gradients of a layer.

    They take the place of the layer's weights or, with `sums`, of its sums. `jax.grad` of a scan holds the gradients of
    all layers beside the weights: 0.95 GB more for Qwen2.5-7B in bfloat16 on 16 devices.
    """
    return _scan_forward(layer, first, x, weights, sums, shared, frozen)[0]


def _scan_forward(
    layer: Layer, first: int, x: jax.Array, weights: Tree, sums: Tree, shared: Tree, frozen: Tree
) -> tuple[tuple[jax.Array, Tree], Tree]:
    def body(x: jax.Array, one: tuple[Tree, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        y, beside = layer(x, one[0], shared, _own(frozen, one[1]))
        return y, (x, beside)

    x, (inputs, beside) = jax.lax.scan(body, x, (weights, first + jnp.arange(_count(weights))))
    return (x, beside), (inputs, weights, sums, shared, frozen)


def _scan_backward(layer: Layer, first: int, kept: Tree, gradients: tuple[jax.Array, Tree]) -> tuple[Tree, ...]:
    inputs, weights, sums, shared, frozen = kept
    gradient, of_beside = gradients

    def body(
        carry: tuple[jax.Array, Tree], xs: tuple[jax.Array, jax.Array, Tree]
    ) -> tuple[tuple[jax.Array, Tree], None]:
        gradient, written = carry  # gradients of the layers that are done, weights or sums of the others
        x, index, beside = xs
        one = _own(written if sums is None else weights, index)
        still = _own(frozen, first + index)
        # `jax.checkpoint` puts a barrier before this: without it 3 % more of Qwen2.5-0.5B is gathered on eight v5p.
        again = jax.checkpoint(lambda x, one: layer(x, one, shared, still))
        gradient, of_weights = jax.vjp(again, x, one)[1]((gradient, beside))
        if sums is not None:
            of_weights = jax.tree.map(_add, _own(written, index), of_weights)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        return (gradient, jax.tree.map(put, written, of_weights)), None

    start = gradient, weights if sums is None else sums
    layers = jnp.arange(inputs.shape[0])
    (gradient, written), _ = jax.lax.scan(body, start, (inputs, layers, of_beside), reverse=True)
    return (gradient, written, None, None, None) if sums is None else (gradient, None, written, None, None)


_scan_full.defvjp(_scan_forward, _scan_backward)


def _add(total: jax.Array, gradient: jax.Array) -> jax.Array:
    return total + gradient.astype(total.dtype)
