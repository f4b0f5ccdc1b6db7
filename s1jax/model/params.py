"""The tree of a decoder's weights: names, shapes, axes and random values.

Outside of `s1jax.model`, weights are a plain nested dict of arrays:

    embed/embedding [V, D]
    layers/attention_norm/scale [L, D]       layers/mlp_norm/scale [L, D]            (`norms` pre, both)
    layers/attention_out_norm/scale [L, D]   layers/mlp_out_norm/scale [L, D]        (`norms` post, both)
    layers/attention/query/kernel [L, D, N, H]  query/bias [L, N, H]     (bias: `qkv_bias`)
    layers/attention/{key,value}/kernel [L, D, K, H]  bias [L, K, H]
    layers/attention/out/kernel [L, N, H, D]    bias [L, D]              (bias: `out_bias`)
    layers/attention/sinks/logits [L, N]                                 (`sinks`)
    layers/attention/{query_norm,key_norm}/scale [L, H]                  (`qk_norm`)
    layers/attention/query_norm/scale [L, N H]  key_norm/scale [L, K H]  (`qk_norm_whole`)
    layers/mlp/{gate,up}/kernel [L, D, F]    layers/mlp/down/kernel [L, F, D]
    layers/mlp/router/kernel [L, D, E]       bias [L, E]                 (experts; bias: `router_bias`)
    layers/mlp/router/selection_bias [L, E], always float32              (`selection_bias`)
    layers/mlp/experts/{gate,up}/kernel [L, E, D, F]  bias [L, E, F]     (bias: `expert_bias`)
    layers/mlp/experts/down/kernel [L, E, F, D]  bias [L, E, D]
    layers/mlp/shared/{gate,up,down}/kernel, as of an MLP                (`shared_hidden`)
    layers/mlp/shared_gate/kernel [L, D, 1]                              (`shared_gate`)
    final_norm/scale [D]                     head/kernel [D, V]          (untied)

If not all layers are alike, every stack of `ModelConfig.stacks` has a tree like `layers` under its own name.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig, Stack
from s1jax.model.block import Block
from s1jax.model.linear import INIT_STD, Projection
from s1jax.model.norms import RMSNorm


class _Embed(nnx.Module):
    """Token embedding [V, D]."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.d_model)
        self.embedding = nnx.Param(INIT_STD * jax.random.truncated_normal(rngs.params(), -3, 3, shape, dtype))


class _Decoder(nnx.Module):
    """Embedding, stacks of layers, final norm and, unless tied, the output projection."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embed = _Embed(config, dtype, rngs)
        for stack in config.stacks():
            setattr(self, stack.name, _stacked(stack, config, dtype, rngs))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps, dtype, config.norm_offset)
        if not config.tied_embeddings:
            self.head = Projection((config.d_model,), (config.vocab_size,), dtype, rngs)


def _stacked(stack: Stack, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> Block:
    """The layers of a stack as one module whose arrays have a layer axis."""

    @nnx.split_rngs(splits=len(stack.numbers))
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: nnx.Rngs) -> Block:
        return Block(stack.layer, config.d_model, config.norm_eps, dtype, rngs, config.norm_offset)

    return make(rngs)


def init_params(config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Random weights; call it under `jax.jit` to shard it.

    Kernels are truncated normal of deviation 0.02, norms the identity, biases and sinks 0.
    """
    return nnx.to_pure_dict(nnx.state(_Decoder(config, dtype, nnx.Rngs(params=key)), nnx.Param))


@functools.cache
def abstract_params(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    return jax.eval_shape(lambda key: init_params(config, key, dtype), jax.random.key(0))


_AXES: dict[str, tuple[str, ...]] = {
    "embed/embedding": ("vocab", "embed"),
    "query/kernel": ("embed", "heads", "head_dim"),
    "query/bias": ("heads", "head_dim"),
    "key/kernel": ("embed", "kv_heads", "head_dim"),
    "key/bias": ("kv_heads", "head_dim"),
    "value/kernel": ("embed", "kv_heads", "head_dim"),
    "value/bias": ("kv_heads", "head_dim"),
    "out/kernel": ("heads", "head_dim", "embed"),
    "gate/kernel": ("embed", "mlp"),
    "up/kernel": ("embed", "mlp"),
    "down/kernel": ("mlp", "embed"),
    "out/bias": ("embed",),
    "sinks/logits": ("heads",),
    "router/kernel": ("embed", "router"),
    "router/bias": ("router",),
    "router/selection_bias": ("router",),
    "shared_gate/kernel": ("embed", "router"),
    "experts/gate/kernel": ("experts", "embed", "expert_mlp"),
    "experts/up/kernel": ("experts", "embed", "expert_mlp"),
    "experts/down/kernel": ("experts", "expert_mlp", "embed"),
    "experts/gate/bias": ("experts", "expert_mlp"),
    "experts/up/bias": ("experts", "expert_mlp"),
    "experts/down/bias": ("experts", "embed"),
    "query_down/kernel": ("embed", "latent"),
    "query_down_norm/scale": ("latent",),
    "query_up/kernel": ("latent", "heads", "head_dim"),
    "latent/kernel": ("embed", "latent"),
    "latent_norm/scale": ("latent",),
    "key_up/kernel": ("latent", "heads", "head_dim"),
    "value_up/kernel": ("latent", "heads", "head_dim"),
    "query_norm/scale": ("head_dim",),
    "key_norm/scale": ("head_dim",),
    "attention_norm/scale": ("embed",),
    "attention_out_norm/scale": ("embed",),
    "mlp_norm/scale": ("embed",),
    "mlp_out_norm/scale": ("embed",),
    "final_norm/scale": ("embed",),
    "head/kernel": ("embed", "vocab"),
}


def logical_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `init_params` with a tuple of axis names for every array; `s1jax.parallel` maps names to the mesh."""
    stacked = {stack.name for stack in config.stacks()}

    def names(path: tuple[jax.tree_util.DictKey, ...], _: jax.ShapeDtypeStruct) -> tuple[str, ...]:
        keys = [entry.key for entry in path]
        of_expert = len(keys) > 2 and keys[-3] == "experts"
        return ("layers",) * (keys[0] in stacked) + _AXES["/".join(keys[-3 if of_expert else -2 :])]

    return jax.tree_util.tree_map_with_path(names, abstract_params(config))
