"""The decoder of Qwen2/2.5, Qwen3 and Llama: one scanned stack of pre-norm blocks.

The Flax modules are built and merged in here; everything outside sees a plain nested dict of arrays:

    embed/embedding [V, D]
    layers/attention_norm/scale [L, D]       layers/mlp_norm/scale [L, D]
    layers/attention/query/kernel [L, D, N, H]  query/bias [L, N, H]     (bias: `qkv_bias`)
    layers/attention/{key,value}/kernel [L, D, K, H]  bias [L, K, H]
    layers/attention/out/kernel [L, N, H, D]
    layers/attention/{query_norm,key_norm}/scale [L, H]                  (`qk_norm`)
    layers/mlp/{gate,up}/kernel [L, D, F]    layers/mlp/down/kernel [L, F, D]
    final_norm/scale [D]                     head/kernel [D, V]          (untied)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import attention as attention_lib
from s1jax.model import cache as cache_lib
from s1jax.model import layers, rope
from s1jax.model import remat as remat_lib

Params = Mapping[str, Any]
Lookup = Callable[[jax.Array, jax.Array], jax.Array]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs, **form: bool):
        d, n, k, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = layers.Projection((d,), (n, h), dtype, rngs, config.qkv_bias, **form)
        self.key = layers.Projection((d,), (k, h), dtype, rngs, config.qkv_bias, **form)
        self.value = layers.Projection((d,), (k, h), dtype, rngs, config.qkv_bias, **form)
        self.out = layers.Projection((n, h), (d,), dtype, rngs, **form)
        self.query_norm = layers.RMSNorm(h, config.norm_eps, dtype) if config.qk_norm else None
        self.key_norm = layers.RMSNorm(h, config.norm_eps, dtype) if config.qk_norm else None

    def qkv(self, x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] -> rotated queries [B, T, N, H], rotated keys and values [B, T, K, H]."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return rope.rotate(q, angles), rope.rotate(k, angles), v


class Block(nnx.Module):
    """One pre-norm decoder layer; `form` is that of its projections."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs, **form: bool):
        self.attention_norm = layers.RMSNorm(config.d_model, config.norm_eps, dtype)
        self.attention = Attention(config, dtype, rngs, **form)
        self.mlp_norm = layers.RMSNorm(config.d_model, config.norm_eps, dtype)
        self.mlp = layers.SwiGLU(config.d_model, config.mlp_dim, dtype, rngs, **form)

    def __call__(
        self, x: jax.Array, angles: Any, segment_ids: jax.Array, attend: attention_lib.Attend, mlp_parts: int
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D], every token seeing its own segment up to itself."""
        q, k, v = self.attention.qkv(self.attention_norm(x), angles)
        x = x + self.attention.out(attend(q, k, v, segment_ids))
        return x + self.mlp(self.mlp_norm(x), mlp_parts)

    def cached(
        self,
        x: jax.Array,
        angles: Any,
        attend: attention_lib.AttendCached,
        pages: cache_lib.Pages,
        layer: jax.Array | None,
        new: cache_lib.Slots,
    ) -> tuple[jax.Array, cache_lib.Pages]:
        """Appends the tokens of `x` [B, T, D] to layer `layer` of the stacked pages, or to its own, and attends."""
        q, k, v = self.attention.qkv(self.attention_norm(x), angles)
        attended, pages = attend(q, k, v, pages, layer, new)
        x = x + self.attention.out(attended)
        return x + self.mlp(self.mlp_norm(x)), pages


class Embed(nnx.Module):
    """Token embedding [V, D]."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.d_model)
        self.embedding = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -3, 3, shape, dtype))


class Decoder(nnx.Module):
    """Embedding, L stacked blocks, final norm and, unless tied, the output projection."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        self.embed = Embed(config, dtype, rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, dtype, rngs)

        self.layers = stack(rngs)
        self.final_norm = layers.RMSNorm(config.d_model, config.norm_eps, dtype)
        if not config.tied_embeddings:
            self.head = layers.Projection((config.d_model,), (config.vocab_size,), dtype, rngs)


def init_params(config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Random weights: truncated normal of deviation 0.02, norms 1, biases 0; call it under `jax.jit` to shard it."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, dtype, nnx.Rngs(params=key)), nnx.Param))


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
    "query_norm/scale": ("head_dim",),
    "key_norm/scale": ("head_dim",),
    "attention_norm/scale": ("embed",),
    "mlp_norm/scale": ("embed",),
    "final_norm/scale": ("embed",),
    "head/kernel": ("embed", "vocab"),
}


def logical_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `init_params` with a tuple of axis names for every array; `s1jax.parallel` maps names to the mesh."""

    def names(path: tuple[Any, ...], _: Any) -> tuple[str, ...]:
        keys = [entry.key for entry in path]
        return ("layers",) * (keys[0] == "layers") + _AXES["/".join(keys[-2:])]

    return jax.tree_util.tree_map_with_path(names, abstract_params(config))


@functools.cache
def _block_structure(config: ModelConfig, **form: bool) -> tuple[nnx.GraphDef, nnx.State]:
    """One layer without weights."""

    def build() -> Block:
        return Block(config, jnp.dtype(jnp.float32), nnx.Rngs(params=0), **form)

    return nnx.split(nnx.eval_shape(build), nnx.Param)


def _block(config: ModelConfig, weights: Params, weight_first: bool = False, apart: bool = False) -> Block:
    """One layer over the arrays of `weights`, a slice of params["layers"]."""
    scaled = "kernel_scale" in weights["mlp"]["gate"]
    graph, state = _block_structure(config, weight_first=weight_first, scaled=scaled, apart=apart)
    state = jax.tree.map(lambda x: x, state)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, dict(weights))
    return nnx.merge(graph, state)


def _embed(params: Params, tokens: jax.Array, dtype: DTypeLike, lookup: Lookup = layers.lookup) -> jax.Array:
    """int32 [B, T] -> [B, T, D]."""
    embed = params["embed"]
    x = lookup(embed["embedding"], tokens).astype(dtype)
    return x * embed["embedding_scale"][tokens][..., None].astype(dtype) if "embedding_scale" in embed else x


def _final_norm(params: Params, config: ModelConfig, x: jax.Array) -> jax.Array:
    return layers.rms_norm(x, params["final_norm"]["scale"], config.norm_eps)


def quantize(params: Params) -> dict[str, Any]:
    """The same weights with the matrices that are multiplied with in int8, for sampling.

    Each has a float32 scale for every output, `kernel_scale` beside `kernel` and, where the embedding is the output
    projection, `embedding_scale` [V]; a weight is off by half a scale at most. Activations keep their type: products
    with few rows take as long as reading the weights, and those are half of bfloat16. Call it under jit.

    Args:
      params: tree of this module's docstring, in a floating type.
    """

    def walk(tree: Params, inputs: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            if name == "kernel":
                found["kernel"], found["kernel_scale"] = cache_lib.quantize(value, inputs)
            else:
                found[name] = walk(value, (1, 2) if name == "out" else inputs) if isinstance(value, Mapping) else value
        return found

    whole = {**params, "layers": walk(params["layers"], (1,))}
    if "head" in params:
        return {**whole, "head": walk(params["head"], (0,))}
    embedding, scale = cache_lib.quantize(params["embed"]["embedding"])
    return {**whole, "embed": {"embedding": embedding, "embedding_scale": scale}}


def unstack(params: Params, weight_first: bool) -> dict[str, Any]:
    """The same weights with `layers` a tuple of one tree per layer, for `forward_cached` and `logits`.

    A scan copies each layer's slice out of the stacked arrays at every step. On a CPU that costs as much as reading the
    weights (benchmarks/decode.py), and on an H100 twice that: 40 instead of 15 GB go through its memory for an id of
    Qwen2.5-7B, by the program that is compiled for it. Unstacked, the copy is made once, at the price of holding the
    weights twice and of compiling L layers. Call it under jit.

    Args:
      params: tree of this module's docstring.
      weight_first: every kernel becomes a matrix [outputs, inputs], as a CPU wants it, see `layers.columns`; not for
        what `quantize` returns.
    """
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    if not weight_first:
        return {**params, "layers": tuple(jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(count))}

    def turn(path: tuple[Any, ...], weight: jax.Array) -> jax.Array:
        *_, projection, name = (entry.key for entry in path)
        if name != "kernel":
            return weight
        inputs = math.prod(weight.shape[: 2 if projection == "out" else 1])
        return weight.reshape(inputs, -1).T

    rest = jax.tree_util.tree_map_with_path(turn, {k: v for k, v in params.items() if k != "layers"})
    layers_ = (jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(count))
    return {**rest, "layers": tuple(jax.tree_util.tree_map_with_path(turn, one) for one in layers_)}


def _is_weight_first(params: Params) -> bool:
    layers_ = params["layers"]
    return isinstance(layers_, tuple) and layers_[0]["attention"]["query"]["kernel"].ndim == 2


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    attend: attention_lib.Attend = attention_lib.attend,
    lookup: Lookup = layers.lookup,
    mlp_parts: int = 1,
    apart: bool = False,
    sums: Any = None,
) -> jax.Array:
    """Runs whole rows, as in training.

    Args:
      params: tree of this module's docstring.
      config: shape of the decoder.
      tokens: int32 [B, T].
      positions: int32 [B, T], restarting at 0 in every segment.
      segment_ids: int32 [B, T], 0 for padding.
      dtype: of activations; weights are cast to it where they are used.
      remat: what is kept of a layer for the backward pass, see `s1jax.model.remat`.
      attend: attention, see `s1jax.model.attention.Attend`.
      lookup: rows of the embedding, see `s1jax.model.layers.lookup`; on a mesh `s1jax.parallel.lookup`.
      mlp_parts: parts of F that the MLP computes one after the other, never holding more of its hidden values.
      apart: B and T are both split among devices, see `s1jax.model.layers.Projection`.
      sums: tree like params["layers"] that their gradients are added to, see `s1jax.model.remat.add_gradients`.

    Returns:
      Hidden states after the final norm, [B, T, D].

    Raises:
      UserError: if T exceeds `config.context_length`.
    """
    if tokens.shape[1] > config.context_length:
        raise UserError(
            f"a row of {tokens.shape[1]} tokens exceeds the model's context_length {config.context_length}; "
            "shorten the rows or raise model.context_length."
        )
    angles = rope.angles(positions, config)

    def block(x: jax.Array, weights: Params, shared: tuple[Any, jax.Array]) -> jax.Array:
        angles, segment_ids = shared
        return _block(config, weights, apart=apart)(x, angles, segment_ids, attend, mlp_parts)

    x = _embed(params, tokens, dtype, lookup)
    x = remat_lib.scan(block, x, params["layers"], (angles, segment_ids), remat, sums)
    return _final_norm(params, config, x)


def forward_cached(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    cache: cache_lib.Cache,
    num_tokens: jax.Array,
    *,
    dtype: DTypeLike = jnp.float32,
    attend: attention_lib.AttendCached = attention_lib.attend_cached,
) -> tuple[jax.Array, cache_lib.Cache]:
    """Runs new tokens against the cache, as in prefill (T > 1) and decoding (T = 1).

    Row b's first num_tokens[b] tokens take the slots from cache.lengths[b] on; what is right of them is padding, whose
    outputs mean nothing and which is not written.

    Args:
      params: tree of this module's docstring, or what `unstack` makes of it.
      config: shape of the decoder.
      tokens: int32 [B, T].
      cache: of the same batch, with pages for the tokens in its table: stacked, or, where the layers of `params` are
        apart, one array a layer.
      num_tokens: int32 [B], 0..T.
      dtype: of activations.
      attend: attention, see `s1jax.model.attention.attend_cached`.

    Returns:
      Hidden states after the final norm [B, T, D], and the cache with the tokens appended.
    """
    positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1])
    angles = rope.angles(positions, config)
    new = cache_lib.Slots(cache.table, cache.lengths, num_tokens)
    x = _embed(params, tokens, dtype)

    def block(weights: Params, x: jax.Array, pages: Any, index: jax.Array | None) -> tuple[jax.Array, Any]:
        return _block(config, weights, _is_weight_first(params)).cached(x, angles, attend, pages, index, new)

    def body(carry: Any, weights: Params) -> tuple[Any, None]:
        x, pages, index = carry
        return (*block(weights, x, pages, index), index + 1), None

    pages: Any = cache.pages
    if isinstance(params["layers"], tuple):
        layer = jax.jit(block)  # traced and lowered once for all of them; compilers put it in its places
        apart = []
        for index, weights in enumerate(params["layers"]):
            if isinstance(pages, tuple):
                x, own = layer(weights, x, pages[index], None)
                apart.append(own)
            else:
                x, pages = layer(weights, x, pages, jnp.int32(index))
        pages = tuple(apart) or pages
    else:
        (x, pages, _), _ = jax.lax.scan(body, (x, pages, 0), params["layers"])
    hidden = _final_norm(params, config, x)
    return hidden, cache_lib.Cache(pages, cache.table, cache.lengths + num_tokens)


def output_kernel(params: Params, config: ModelConfig) -> jax.Array:
    """The output projection [D, V]; the transposed embedding where the two are tied."""
    return params["embed"]["embedding"].T if config.tied_embeddings else params["head"]["kernel"]


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32 [..., V]; training never holds them all (`s1jax.training.losses.cross_entropy`)."""
    tied = config.tied_embeddings
    kernel = (params["embed"]["embedding"] if tied else params["head"]["kernel"]).astype(hidden.dtype)
    if _is_weight_first(params):
        turned = layers.columns(hidden.reshape(-1, hidden.shape[-1]))
        product = jnp.matmul(kernel, turned, preferred_element_type=jnp.float32)
        return layers.rows(product).reshape(*hidden.shape[:-1], -1)
    # Tied, it is contracted as it lies: a transposed copy would be made at every decoding step.
    contract = (((hidden.ndim - 1,), (1 if tied else 0,)), ((), ()))
    product = jax.lax.dot_general(hidden, kernel, contract, preferred_element_type=jnp.float32)
    scale = params["embed"].get("embedding_scale") if tied else params["head"].get("kernel_scale")
    return product if scale is None else product * scale
