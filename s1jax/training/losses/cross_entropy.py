"""Cross-entropy of next-token prediction: the loss of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from s1jax.training.losses import chunks


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunk: int,
    mesh: Mesh | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Weighted sum of negative log-likelihoods, with a float32 softmax, by `chunks.weighted_sum`.

    Args:
      hidden: [B, T, D], the decoder's output after its final norm.
      kernel: [D, V], the output projection.
      targets: [B, T] int32, the ids to predict.
      weights: [B, T] float32; 0 where nothing is learned.
      chunk: C; logits of [b, C, v] exist at one time on a device.
      mesh: of `mesh_lib.make_mesh`. None: everything is on one device.
      softcap: of logits, see `chunks.Head`.

    Returns:
      float32 scalar, sum over all positions of weights * -log softmax(logits)[targets]. It has no gradient
      with respect to `weights`.
    """
    tokens = {"targets": targets}
    return chunks.weighted_sum(hidden, kernel, weights, tokens, None, None, of_tokens, chunk, mesh, softcap)[0]


def batch_loss(
    hidden: jax.Array,
    kernel: jax.Array,
    batch: Mapping[str, jax.Array],
    chunk: int,
    mesh: Mesh,
    teacher: chunks.Head | None = None,
    softcap: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`cross_entropy` of a batch: the loss of supervised fine-tuning, see `s1jax.training.step.Loss`."""
    return cross_entropy(hidden, kernel, batch["targets"], batch["weights"], chunk, mesh, softcap), {}


def of_tokens(
    logits: jax.Array, teacher: jax.Array | None, tokens: Mapping[str, jax.Array], columns: chunks.Columns
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Cross-entropy of each token as a `chunks.Rule`; `tokens` has the `targets`."""
    targets = tokens["targets"]
    hit = columns.ids == targets[..., None]
    top = columns.max(logits.max(-1, keepdims=True))
    exponentials = jnp.exp(logits - top)
    if columns.is_split:
        picked = jnp.sum(jnp.where(hit, logits, 0.0), -1, keepdims=True)
    else:
        picked = jnp.take_along_axis(logits, targets[..., None], -1)
    norm, picked = columns.sum((exponentials.sum(-1, keepdims=True), picked))
    return (jnp.log(norm) + top - picked)[..., 0], {}, exponentials / norm - hit


def mixed(
    share: float,
    value: jax.Array,
    gradient: jax.Array,
    logits: jax.Array,
    tokens: Mapping[str, jax.Array],
    columns: chunks.Columns,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Mixes a distillation loss with cross-entropy, as a `chunks.Rule` returns it.

    Args:
      share: of the distillation; cross-entropy, over all columns as in training, has the rest.
      value: [b, C], the distillation loss of each token.
      gradient: [b, C, v], of `value` with respect to `logits`.
      logits: see `of_tokens`, and so are the others.
    """
    plain, _, d_plain = of_tokens(logits, None, tokens, columns)
    parts = {"cross_entropy": plain, "distillation": value}
    if share == 0:  # to the bit
        return plain, parts, d_plain
    if share == 1:
        return value, parts, gradient
    return (1 - share) * plain + share * value, parts, (1 - share) * d_plain + share * gradient
