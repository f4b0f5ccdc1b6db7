"""The optimizer with its learning rate: AdamW as in torch and the s1 recipe, or Muon for the matrices."""

from __future__ import annotations

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
        optax.add_decayed_weights(config.weight_decay, is_matrix(model, lora)),
        optax.scale_by_learning_rate(schedule(config, num_steps)),
    )


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
    leaves, tree = jax.tree.flatten(params)
    key = jax.random.fold_in(jax.random.key(0), step)
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
    if lora.rank:
        return jax.tree.map(lambda _: True, adapters.abstract(model, lora, jnp.float32))

    def last(path: tuple[Any, ...], _: Any) -> bool:
        return path[-1].key in ("kernel", "embedding")

    return jax.tree_util.tree_map_with_path(last, decoder.abstract_params(model))


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
