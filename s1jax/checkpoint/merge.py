"""Adapters of a checkpoint: what they belong to, and their product added to the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from s1jax.config.lora import LoraConfig
from s1jax.config.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class AdapterInfo:
    """What a checkpoint says whose arrays are adapters.

    Attributes:
      lora: their rank, scale and targets.
      base: the checkpoint that they were trained for, `package:NAME` or a folder.
      fingerprint: of it (`digests.fingerprint`).
    """

    lora: LoraConfig
    base: str
    fingerprint: str


def merge(
    params: Mapping[str, Any], adapters: Mapping[str, Any], config: ModelConfig, lora: LoraConfig
) -> dict[str, Any]:
    """Weights with W + scale * A B in place of every W that has an adapter, added in float32 and rounded once.

    Args:
      params: tree of `s1jax.model.params`, of numpy or jax arrays. The numpy arrays with an adapter are changed; the
        jax arrays with one are used up.
      adapters: tree of `s1jax.model.adapters`, of numpy arrays, or of jax arrays on the same devices.
      config: of the model.
      lora: of the adapters.

    Returns:
      the tree of the weights, in the types that they had.
    """
    from s1jax.model import adapters as adapters_lib

    found: dict[str, Any] = dict(params)
    for path, lead, out in adapters_lib.paths(config, lora):
        node, pair = found, adapters
        for name in path:
            node[name] = dict(node[name])
            node, pair = node[name], pair[name]
        kernel = node["kernel"]
        if isinstance(kernel, np.ndarray):
            _add(kernel, pair["a"], pair["b"], lora.scale, lead, out)
        else:
            node["kernel"] = _program(kernel.sharding, lora.scale, lead, out)(kernel, pair["a"], pair["b"])
    return found


def _add(kernel: np.ndarray, a: npt.ArrayLike, b: npt.ArrayLike, scale: float, lead: int, out: int) -> None:
    """Adds an adapter to a kernel in place, one matrix at a time."""
    a, b = np.asarray(a), np.asarray(b)
    rank = a.shape[-1]
    for place in np.ndindex(kernel.shape[:lead]):
        left, right = a[place].reshape(-1, rank).astype(np.float32), b[place].reshape(rank, -1).astype(np.float32)
        whole = kernel[place].astype(np.float32) + np.float32(scale) * (left @ right).reshape(kernel[place].shape)
        kernel[place] = whole.astype(kernel.dtype)


def _program(sharding: Any, scale: float, lead: int, out: int) -> Any:
    """`_add` of arrays on devices; the kernel is donated."""
    import jax
    import jax.numpy as jnp

    def one(matrices: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel, a, b = (x.astype(jnp.float32) for x in matrices)
        rank = a.shape[-1]
        product = jnp.matmul(a.reshape(-1, rank), b.reshape(rank, -1), precision=jax.lax.Precision.HIGHEST)
        return (kernel + scale * product.reshape(kernel.shape)).astype(matrices[0].dtype)

    def whole(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        layers = one if lead == 1 else lambda matrices: jax.lax.map(one, matrices)
        return jax.lax.map(layers, (kernel, a, b))

    return jax.jit(whole, out_shardings=sharding, donate_argnums=0)
