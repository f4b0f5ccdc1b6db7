"""The optimizer with its learning rate: AdamW as in torch and the s1 recipe, or Muon for the matrices."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from s1jax.config.experiment import OptimizerConfig
from s1jax.config.lora import OFF, LoraConfig
from s1jax.config.model import ModelConfig
from s1jax.model import adapters, decoder
from s1jax.training import moments


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of optimizer step 0, 1, ...: linear from 0 over ceil(fraction * steps), then down to 0.

    The same numbers as transformers' `get_cosine_schedule_with_warmup` and its linear and constant siblings.
    """
    warmup = math.ceil(config.warmup_fraction * num_steps)

    def rate(step: jax.Array) -> jax.Array:
        rising = step / max(1, warmup)
        done = (step - warmup) / max(1, num_steps - warmup)
        if config.schedule == "cosine":
            falling = 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "linear":
            falling = 1 - done
        else:
            falling = jnp.ones_like(done)
        return config.learning_rate * jnp.where(step < warmup, rising, jnp.clip(falling, 0, 1))

    return rate


def make(
    config: OptimizerConfig, model: ModelConfig, num_steps: int, lora: LoraConfig = OFF
) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps; gradients are clipped before it, see `clip`.

    With adapters (`lora`) it is of their tree, and all of them are matrices.

    AdamW: u = m_hat / (sqrt(v_hat) + eps); p <- p - rate * (u + decay * p), decay on matrices only. Muon replaces u by
    the orthogonalised momentum for the layers' kernels (optax's coefficients, 5 iterations, scaled by
    sqrt(max(1, outputs / inputs))); embeddings, norms, biases and the head keep Adam's u, with Nesterov momentum.

    Moments are kept in `config.moment_dtype` between steps. Gradients must be float32, and the updates are.
    """
    if config.name == "adamw":
        direction = optax.scale_by_adam(config.b1, config.b2, config.eps)
    else:
        # optax's muon is a whole optimizer; at rate 1 its update is -u.
        direction = optax.chain(
            optax.contrib.muon(
                1.0,
                adam_b1=config.b1,
                adam_b2=config.b2,
                eps=config.eps,
                muon_weight_dimension_numbers=_muon_dimensions(model),
            ),
            optax.scale(-1.0),
        )
    return optax.chain(
        _stored(direction, config.moment_dtype),
        optax.add_decayed_weights(config.weight_decay, functools.partial(_matrices, lora=lora)),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
    )


def advance(
    tx: optax.GradientTransformation,
    config: OptimizerConfig,
    before: tuple[Any, Any],
    grads: Any,
    norm: jax.Array,
    step: jax.Array,
    finite: jax.Array,
) -> tuple[Any, Any]:
    """One step of the optimizer.

    Moments in int8 advance one layer of one weight at a time, in place. The largest value of a block is needed before
    its codes, so that float copies of what is updated exist: of all weights together they were 46 GB for 7 billion, of
    a layer's MLP they are 0.3 GB each. Muon's moments are the exception.

    Args:
      tx: of `make`.
      config: that it was made of.
      before: parameters and the state of `tx`.
      grads: of the parameters, in any floating type, not clipped.
      norm: of all gradients, see `clip`.
      step: int32 scalar, see `apply`.
      finite: whether to step at all; if not, `before` comes back.

    Returns:
      parameters and the state of `tx`.
    """

    def one(before: tuple[Any, Any], grads: Any, key: jax.Array) -> tuple[Any, Any]:
        params, state = before
        grads = clip(jax.tree.map(lambda g: g.astype(jnp.float32), grads), norm, config.clip_norm)
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda x, old: jnp.where(finite, x, old), (_add(params, updates, key), state), before)

    key = jax.random.fold_in(jax.random.key(0), step)
    if config.moment_dtype != "int8" or config.name == "muon":
        return one(before, grads, key)
    after: dict[Any, jax.Array] = {}
    for index, (path, weight) in enumerate(jax.tree_util.tree_leaves_with_path(before[0])):
        names = tuple(entry.key for entry in path)
        part = _only(before, names), _only(grads, names), jax.random.fold_in(key, index)
        stacked = names[0].startswith("layers") and weight.size // len(weight) >= moments.SMALLEST
        advanced = _layer_by_layer(one, len(weight), *part) if stacked else one(*part)
        after.update(jax.tree_util.tree_leaves_with_path(advanced))
    return jax.tree_util.tree_map_with_path(lambda path, _: after[path], before)


def _layer_by_layer(one: Any, count: int, before: Any, grads: Any, key: jax.Array) -> Any:
    """`one` for each of `count` slices of arrays that belong to weights; other leaves are those of the last slice."""

    def body(layer: jax.Array, now: Any) -> Any:
        def slice_of(path: tuple[Any, ...], x: jax.Array, first: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) if _of_weight(path) else first

        def put(path: tuple[Any, ...], whole: jax.Array, x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(whole, x, layer, 0) if _of_weight(path) else x

        old = jax.tree_util.tree_map_with_path(slice_of, now, before)
        new = one(old, jax.tree_util.tree_map_with_path(slice_of, grads, grads), jax.random.fold_in(key, layer))
        return jax.tree_util.tree_map_with_path(put, now, new)

    return jax.lax.fori_loop(0, count, body, before)


def _of_weight(path: tuple[Any, ...]) -> bool:
    """Whether the leaf at a path is a weight or its moment, and not a count of steps."""
    return isinstance(path[-1], jax.tree_util.DictKey)


def _only(tree: Any, names: tuple[str, ...]) -> Any:
    """The same tree with one weight in place of all, at the same path."""

    def one(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        for name in names:
            node = node[name]
        for name in reversed(names):
            node = {name: node}
        return node

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, dict))


def apply(params: Any, updates: Any, step: jax.Array) -> Any:
    """Returns params + updates, with stochastic rounding of weights in bfloat16: the sum is right on average.

    Rounded to nearest, most updates of a fine-tuning run would be lost: at a learning rate of 1e-5 an update is 1/100
    of a weight's last place (Gupta et al. 2015; Zamirai et al. 2020). The random bits are a function of the step and
    the weight, whatever the mesh.

    Args:
      params: float32 or bfloat16.
      updates: float32, of the same shapes.
      step: int32 scalar, which no two updates of a run share.
    """
    return _add(params, updates, jax.random.fold_in(jax.random.key(0), step))


def _add(params: Any, updates: Any, key: jax.Array) -> Any:
    leaves, tree = jax.tree.flatten(params)
    sums = []
    for index, (param, update) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        wide = param.astype(jnp.float32) + update
        narrow = param.dtype == jnp.bfloat16
        sums.append(_stochastic_round(wide, jax.random.fold_in(key, index)) if narrow else wide.astype(param.dtype))
    return jax.tree.unflatten(tree, sums)


def _stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> one of its two neighbours in bfloat16, chosen by distance; values that are not finite stay so."""
    # bfloat16 is the upper half of float32. A random lower half is added to the number's own: the sum carries into the
    # upper half with the probability that the rounding wants.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    carried = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), carried, x.astype(jnp.bfloat16))


def _stored(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`inner` with moments that are kept in `dtype` between updates; the update uses them in float32, unrounded."""

    def narrow(moment: jax.Array, signed: bool) -> Any:
        return moments.pack(moment, signed) if dtype == "int8" else moment.astype(dtype)

    def wide(moment: Any, signed: bool) -> jax.Array:
        return moments.unpack(moment, signed).astype(jnp.float32)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(grads, moments.change(state, wide), params)
        return updates, moments.change(state, narrow)

    return optax.GradientTransformation(lambda params: moments.change(inner.init(params), narrow), update)


def is_matrix(model: ModelConfig, lora: LoraConfig = OFF) -> dict[str, Any]:
    """True for embeddings, projections, MLP, head and adapters, False for biases and norms, in the trained tree.

    It is that of the parameters, or that of the adapters if there are any.
    """
    tree = adapters.abstract(model, lora, jnp.float32) if lora.rank else decoder.abstract_params(model)
    return _matrices(tree, lora)


def _matrices(tree: Any, lora: LoraConfig) -> Any:
    """`is_matrix` of a tree with some of the weights."""
    names = ("a", "b") if lora.rank else ("kernel", "embedding")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, tree)


def clip(grads: Any, norm: jax.Array, largest: float) -> Any:
    """Scales gradients of global norm `norm` down to `largest` as `torch.nn.utils.clip_grad_norm_` does; 0: not."""
    if not largest:
        return grads
    scale = jnp.minimum(1.0, largest / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def _muon_dimensions(model: ModelConfig) -> dict[str, Any]:
    """Which axes of a layer's kernels [L, ...] are its input and output; None where AdamW is used, as for routers."""
    heads = ("query", "key", "value", "query_up", "key_up", "value_up")  # [L, inputs, N, H]; others [L, ..., outputs]
    inputs = {"out": (1, 2)}
    stacked = {stack.name for stack in model.stacks()}

    def numbers(path: tuple[Any, ...], leaf: Any) -> Any:
        keys = [entry.key for entry in path]
        if keys[0] not in stacked or keys[-1] != "kernel" or keys[-2] in ("router", "shared_gate"):
            return None
        if keys[-3] == "experts":  # [L, E, inputs, outputs]
            return optax.contrib.MuonDimensionNumbers((2,), (3,))
        outputs = (2, 3) if keys[-2] in heads else (len(leaf.shape) - 1,)
        return optax.contrib.MuonDimensionNumbers(inputs.get(keys[-2], (1,)), outputs)

    return jax.tree_util.tree_map_with_path(numbers, decoder.abstract_params(model))
