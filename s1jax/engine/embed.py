"""Represents texts by vectors: the mean of the decoder's last hidden states over the tokens of each.

Axis letters: B batch, T row length, D model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.config.model import ModelConfig
from s1jax.engine import buckets, score
from s1jax.errors import UserError

if TYPE_CHECKING:
    from s1jax.checkpoint.store import Model

_LEAST = 1e-12  # length below which a vector is not scaled to 1


def embed(
    params: Mapping[str, Any],
    config: ModelConfig,
    rows: Sequence[Sequence[int]],
    *,
    dtype: str = "float32",
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Returns one vector of length 1 for each row.

    A vector depends on the tokens of its row alone, up to the rounding of matrix products, which can differ between
    lengths that rows are padded to.

    Args:
      params: tree of `s1jax.model.decoder`, on one device.
      config: shape of the model.
      rows: token ids of each text, at least one; the first `config.context_length` of them count.
      dtype: of activations; the mean is float32.
      batch_size: rows per batch; the last batch is padded with rows that do not count.
      progress: called after every batch with the number of rows so far.

    Returns:
      float32 [rows, D].

    Raises:
      UserError: before anything runs, for a row without tokens or with an id outside the vocabulary.
    """
    ids = [list(row[: config.context_length]) for row in rows]
    for i, row in enumerate(ids):
        if not row:
            raise UserError(f"row {i} has no tokens; give a text that is not empty.")
        if bad := [token for token in row if not 0 <= token < config.vocab_size]:
            raise UserError(f"row {i}: id {bad[0]} is outside the model's vocabulary of {config.vocab_size} ids.")
    found = np.zeros((len(ids), config.d_model), np.float32)
    if not ids:
        return found
    implementation = score.attention(params, config, dtype)
    batch_size = min(batch_size, len(ids))
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # so that memory, if it runs out, does so at once
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens = np.zeros((batch_size, min(buckets.bucket(len(ids[batch[0]])), config.context_length)), np.int32)
        lengths = np.ones(batch_size, np.int32)
        for b, i in enumerate(batch):
            tokens[b, : len(ids[i])] = ids[i]
            lengths[b] = len(ids[i])
        means = _means(params, tokens, lengths, config=config, dtype=dtype, implementation=implementation)
        found[batch] = np.asarray(means)[: len(batch)]
        if progress is not None:
            progress(start + len(batch))
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), _LEAST)


def embed_texts(
    model: Model,
    texts: Sequence[str],
    *,
    dtype: str = "float32",
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Returns one vector of length 1 for each text, standardised over all texts; see `embed` and `standardised`.

    Args:
      model: loaded with this dtype, on one device.
      texts: at least one; without a chat format. Of each the first `config.context_length` tokens count.
      dtype: as for `embed`, and so are the others.
      batch_size: rows per batch.
      progress: called after every batch.
      note: gets a sentence where texts exceed the context length.

    Returns:
      float32 [texts, D].
    """
    ids = [model.tokenizer.encode_text(text) for text in texts]
    most = model.config.context_length
    if note is not None and (longer := sum(len(row) > most for row in ids)):
        note(f"{longer:,} of {len(ids):,} questions exceed the model's {most:,} tokens; their first {most:,} are read.")
    return standardised(embed(model.params, model.config, ids, dtype=dtype, batch_size=batch_size, progress=progress))


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [rows, D] whose numbers have mean 0 and deviation 1 over the rows, scaled to length 1.

    A few numbers of a decoder's hidden states are much larger than the others and nearly the same for all texts.
    Without this step they decide which texts are near each other: `benchmarks/results/domains.json` has the difference.
    """
    x = np.asarray(vectors, np.float64)
    x = (x - x.mean(0)) / np.maximum(x.std(0), _LEAST)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LEAST), np.float32)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "implementation"))
def _means(
    params: Mapping[str, Any],
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    config: ModelConfig,
    dtype: str,
    implementation: str,
) -> jax.Array:
    """Returns the mean hidden states of one batch.

    Args:
      params: weights.
      tokens: int32 [B, T], padded on the right.
      lengths: int32 [B], 1..T.
      config: shape of the model.
      dtype: of activations.
      implementation: of attention.

    Returns:
      float32 [B, D].
    """
    hidden = score.forward(params, config, tokens, lengths, dtype, implementation)
    counts = jnp.arange(tokens.shape[1]) < lengths[:, None]  # [B, T]
    total = jnp.sum(jnp.where(counts[:, :, None], hidden.astype(jnp.float32), 0), axis=1)
    return total / lengths[:, None]
