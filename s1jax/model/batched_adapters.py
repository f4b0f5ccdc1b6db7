"""Several adapters of low rank in one batch: each sequence has its own, or none.

The adapters of a projection are one pair of arrays. Products are made with all of them, and those of other adapters are
multiplied by 0: with the low ranks of adapters that is cheaper than a copy of A and B for each row. A token's experts
are chosen by its row anyway, and so are their adapters (`s1jax.model.mlp.grouped`).

Axis letters: A adapters, B sequences, E experts, D inputs, F outputs, R the largest rank of the adapters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.model import adapters as adapters_lib
from s1jax.model.layouts import Params, Unstacked
from s1jax.model.linear import BatchAdapted

NONE = -1  # the adapter of a sequence that has none


def attach(
    params: Params,
    config: ModelConfig,
    adapters: Mapping[str, tuple[Mapping[str, Any], LoraConfig]],
    dtype: DTypeLike,
) -> dict[str, Any]:
    """Weights with a `BatchAdapted` in place of each kernel that one of the adapters changes.

    Args:
      params: as the sampling programs take them, stacked or `Unstacked`, in any type.
      config: of the model.
      adapters: name -> tree of `s1jax.model.adapters`, and its settings.
      dtype: of the adapters in the products.
    """
    found = dict(params)
    for path, lead, out in sorted({one for _, lora in adapters.values() for one in adapters_lib.paths(config, lora)}):
        a, b = _pair(path, lead, out, list(adapters.values()), dtype)
        scales = jnp.asarray([lora.scale for _, lora in adapters.values()], jnp.float32)
        if isinstance(found["layers"], Unstacked):
            stack = next(stack for stack in config.stacks() if stack.name == path[0])
            layers = list(found["layers"].layers)
            for i, number in enumerate(stack.numbers):
                layers[number] = _put(layers[number], path[1:], a[i], b[i], scales)
            found["layers"] = Unstacked(tuple(layers))
        else:
            found = _put(found, path, a, b, jnp.broadcast_to(scales, (a.shape[0], *scales.shape)))
    return found


def choose(params: Any, chosen: jax.Array | None) -> Any:
    """The weights as a batch is multiplied with them.

    Args:
      params: of `attach`, or without adapters, which come back unchanged.
      chosen: int32 [B], the adapter of each sequence, or `NONE`; None: no sequence has one.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, BatchAdapted) or chosen is None:
            return leaf
        lead = leaf.scales.shape[:-1]  # of stacked layers
        return dataclasses.replace(leaf, chosen=jnp.broadcast_to(chosen, (*lead, *chosen.shape)))

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, BatchAdapted))


def _pair(
    path: tuple[str, ...],
    lead: int,
    out: int,
    adapters: Sequence[tuple[Mapping[str, Any], LoraConfig]],
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """A [L, A, D, R] and B [L, A, R, F] of a projection, of experts with E after L; zeros where an adapter has none."""
    pairs: list[tuple[np.ndarray, np.ndarray] | None] = []
    for tree, _ in adapters:
        node: Any = tree
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        pairs.append(None if node is None else (np.asarray(node["a"]), np.asarray(node["b"])))
    rank = max(lora.rank for _, lora in adapters)
    known = next(pair for pair in pairs if pair is not None)
    before = known[0].shape[:lead]
    inputs, outputs = int(np.prod(known[0].shape[lead:out])), int(np.prod(known[1].shape[lead + 1 :]))
    a = np.zeros((*before, len(adapters), inputs, rank), np.float32)
    b = np.zeros((*before, len(adapters), rank, outputs), np.float32)
    for i, pair in enumerate(pairs):
        if pair is not None:
            own = pair[0].shape[-1]
            a[..., i, :, :own] = pair[0].reshape(*before, inputs, own)
            b[..., i, :own, :] = pair[1].reshape(*before, own, outputs)
    return jnp.asarray(a, dtype), jnp.asarray(b, dtype)


def _put(tree: Params, path: tuple[str, ...], a: jax.Array, b: jax.Array, scales: jax.Array) -> dict[str, Any]:
    """The tree with an adapter at the kernel of a projection."""
    if not path:
        return {**tree, "kernel": BatchAdapted(tree["kernel"], a, b, scales)}
    return {**tree, path[0]: _put(tree[path[0]], path[1:], a, b, scales)}
