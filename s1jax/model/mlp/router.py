"""The router of a mixture of experts: which experts a token passes, with which weights, in float32.

In bfloat16, tokens changed experts between prefill and decode steps, and between training and sampling. Ties go to the
expert with the lower number.

Axis letters: E experts, k experts of a token, R tokens, L layers with experts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from s1jax.config.layers import Experts
from s1jax.model.linear import INIT_STD

_SMALLEST_SUM = 1e-20  # added to the sum of weights, as DeepSeek-V3's code does; softmax has larger sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Load:
    """How a layer's tokens are spread over its experts; padding is left out.

    Attributes:
      counts: float32 [..., E], tokens that chose the expert; without a gradient.
      probabilities: float32 [..., E], sum of the softmax of the router's logits over the tokens.
    """

    counts: jax.Array
    probabilities: jax.Array


class Router(nnx.Module):
    """Gives every token a logit for each expert."""

    def __init__(self, spec: Experts, d_model: int, dtype: DTypeLike, rngs: nnx.Rngs):
        e = spec.num_experts
        self.kernel = nnx.Param(INIT_STD * jax.random.truncated_normal(rngs.params(), -3, 3, (d_model, e), dtype))
        self.bias = nnx.Param(jnp.zeros((e,), dtype)) if spec.router_bias else None
        self.selection_bias = nnx.Param(jnp.zeros((e,), jnp.float32)) if spec.selection_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., E]."""
        # By default, TPUs multiply float32 in bfloat16.
        logits = jnp.matmul(
            x.astype(jnp.float32), self.kernel[...].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        return logits if self.bias is None else logits + self.bias[...].astype(jnp.float32)

    def selection(self) -> jax.Array | None:
        """The bias that chooses experts, float32 [E]; it is not trained by gradients."""
        if self.selection_bias is None:
            return None
        return jax.lax.stop_gradient(self.selection_bias[...].astype(jnp.float32))


def route(logits: jax.Array, spec: Experts, bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Chooses experts.

    Args:
      logits: float32 [..., E].
      spec: of the layer.
      bias: float32 [E], added to the scores for the choice alone; None: there is none.

    Returns:
      Weights float32 [..., k] and experts int32 [..., k], from the best one on.
    """
    scores = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "topk_softmax": lambda x: x}[spec.scores](logits)
    choice = jax.lax.stop_gradient(scores if bias is None else scores + bias)
    if spec.groups > 1:
        choice = _in_best_groups(choice, spec)
    _, ids = jax.lax.top_k(choice, spec.experts_per_token)
    weights = jnp.take_along_axis(scores, ids, axis=-1)
    if spec.scores == "topk_softmax":
        weights = jax.nn.softmax(weights)
    elif spec.normalize:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + _SMALLEST_SUM)
    return weights * spec.routed_scale, ids


def _in_best_groups(choice: jax.Array, spec: Experts) -> jax.Array:
    """Scores [..., E] with -inf for experts outside of the best groups."""
    grouped = choice.reshape(*choice.shape[:-1], spec.groups, -1)
    best = min(2, grouped.shape[-1]) if spec.selection_bias else 1
    of_group = jnp.sum(jax.lax.top_k(grouped, best)[0], axis=-1)
    _, kept = jax.lax.top_k(of_group, spec.top_groups)
    is_kept = jnp.any(kept[..., None] == jnp.arange(spec.groups), axis=-2)
    return jnp.where(is_kept[..., None], grouped, -jnp.inf).reshape(choice.shape)


def load(logits: jax.Array, ids: jax.Array, valid: jax.Array) -> Load:
    """Counts what the experts of a layer get.

    Args:
      logits: float32 [..., E].
      ids: int32 [..., k], of `route`.
      valid: bool [...], False for padding.
    """
    axes = tuple(range(valid.ndim))
    chosen = jnp.sum(ids[..., None] == jnp.arange(logits.shape[-1]), axis=-2)
    mask = valid[..., None].astype(jnp.float32)
    return Load(jnp.sum(chosen * mask, axis=axes), jnp.sum(jax.nn.softmax(logits) * mask, axis=axes))


def balance_loss(load: Load, tokens: jax.Array) -> jax.Array:
    """Load-balancing loss (Switch Transformer), with the layers pooled as in transformers' `load_balancing_loss_func`.

    E sum_e f_e P_e for f_e, the share of tokens that chose e (they add up to k), and P_e, the mean probability. It is k
    where all experts get the same.

    Args:
      load: [L, E].
      tokens: scalar, number of tokens without padding.

    Returns:
      float32 scalar.
    """
    layers, experts = load.counts.shape
    shares = 1 / (layers * jnp.maximum(tokens, 1).astype(jnp.float32))
    f, p = (jnp.sum(x, axis=0) * shares for x in (load.counts, load.probabilities))
    return experts * jnp.sum(f * p)
