"""Computes log-likelihoods of given continuations, for multiple-choice tasks and perplexities.

A batch is one program: the decoder over whole rows, then the output projection over the predicted positions alone, a
chunk of each row at a time. Compilation depends on the model, the batch size and the length of the longest row, rounded
up to a power of two; never on where contexts end.

Axis letters: B batch, T row length, C chunk length, D model, V vocabulary rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s1jax.config.model import ModelConfig
from s1jax.engine import buckets
from s1jax.engine import logits as logits_lib
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.model.attention import dispatch, rule

_SMALLEST = 32  # length that rows are padded to
TOKENS = 512  # of a chunk, over all rows: 0.3 GB of logits with the vocabulary of Qwen2.5

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context and of its continuation


def log_likelihoods(
    params: Mapping[str, Any],
    config: ModelConfig,
    pairs: Sequence[Pair],
    *,
    dtype: str = "float32",
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[float, bool]]:
    """Scores every continuation after its context.

    A row that is longer than the model's context is truncated on the left, as in the harness's own Hugging Face models:
    the last `context_length` + 1 tokens of context and continuation are kept. The last one is predicted, never read.

    Args:
      params: tree of `s1jax.model.decoder`, on one device.
      config: shape of the model.
      pairs: ids of each context, at least one, and of its continuation. An empty continuation has log-likelihood 0.
      dtype: of activations; logits and softmax are float32.
      batch_size: rows per batch; the last batch is padded with rows that do not count.
      progress: called after every batch with the number of pairs scored so far.

    Returns:
      For every pair, in order: the sum of log p(id | all ids before it) over the continuation, in nats, and whether
      each of its ids is the most probable one (of equals the first) at its place.

    Raises:
      UserError: before anything runs, for an empty context, a continuation that is longer than the model's context,
        or an id outside the vocabulary.
    """
    if not pairs:
        return []
    rows = [_row(config, *pair, f"pair {i}") for i, pair in enumerate(pairs)]
    counts = [len(continuation) for _, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # so that memory, if it runs out, does so at once
    batch_size = min(batch_size, len(rows))
    implementation = attention(params, config, dtype)
    results: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        missing = batch_size - len(batch)
        length = padded(len(rows[batch[0]]) - 1, config)
        tokens = np.zeros((batch_size, length + 1), np.int32)
        for b, i in enumerate(batch):
            tokens[b, : len(rows[i])] = rows[i]
        lengths = np.array([len(rows[i]) - 1 for i in batch] + [1] * missing, np.int32)
        predicted = np.array([counts[i] for i in batch] + [0] * missing, np.int32)
        totals, greedy = _score(
            params, tokens, lengths, predicted, config=config, dtype=dtype, implementation=implementation
        )
        results.update(zip(batch, zip(totals.tolist(), greedy.tolist(), strict=True), strict=False))
        if progress is not None:
            progress(len(results))
    return [results[i] for i in range(len(rows))]


def attention(params: Mapping[str, Any], config: ModelConfig, dtype: str) -> str:
    """Returns the implementation of attention for whole rows on the one device that has the weights."""
    (device,) = jax.tree.leaves(params)[0].devices()
    return dispatch.choose("auto", device.platform, dtype, False, 1, config.head_dim, rule.needs(config))[0]


def padded(longest: int, config: ModelConfig) -> int:
    """Returns the length that rows of at most `longest` tokens are padded to."""
    return min(max(_SMALLEST, buckets.power_of_two(longest)), config.context_length)


def forward(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    dtype: str,
    implementation: str,
) -> jax.Array:
    """Runs rows that are padded on the right.

    Args:
      params: weights.
      config: shape of the model.
      tokens: int32 [B, T].
      lengths: int32 [B], 1..T.
      dtype: of activations.
      implementation: of attention.

    Returns:
      Hidden states [B, T, D].
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    return decoder.forward(
        params, config, tokens, positions, segment_ids, dtype=jnp.dtype(dtype),
        attend=functools.partial(dispatch.attend, implementation=implementation),
    )  # fmt: skip


def _row(config: ModelConfig, context: Sequence[int], continuation: Sequence[int], name: str) -> list[int]:
    """Checks a pair and returns its ids, the last one included; at least two, so that there is something to run."""
    if not context:
        raise UserError(f"{name}: the context is empty; give at least one id, such as the end-of-sequence id.")
    if len(continuation) > config.context_length:
        raise UserError(
            f"{name}: a continuation of {len(continuation)} ids exceeds the model's context length of"
            f" {config.context_length}; shorten it."
        )
    row = [*context, *continuation][-config.context_length - 1 :]
    bad = [i for i in row if not 0 <= i < config.vocab_size]
    if bad:
        raise UserError(f"{name}: id {bad[0]} is outside the model's vocabulary of {config.vocab_size} ids.")
    return row if len(row) > 1 else [*row, row[0]]


@functools.partial(jax.jit, static_argnames=("config", "dtype", "implementation"))
def _score(
    params: Mapping[str, Any],
    tokens: jax.Array,
    lengths: jax.Array,
    predicted: jax.Array,
    *,
    config: ModelConfig,
    dtype: str,
    implementation: str,
) -> tuple[jax.Array, jax.Array]:
    """Scores one batch.

    Args:
      params: weights.
      tokens: int32 [B, T + 1], padded on the right.
      lengths: int32 [B], ids that the model reads, 1..T; one more of each row is predicted.
      predicted: int32 [B], ids of each continuation, 0..lengths.
      config: shape of the model.
      dtype: of activations.
      implementation: of attention.

    Returns:
      float32 [B], log-likelihoods; bool [B], whether all predicted ids are the most probable ones.
    """
    batch, length = tokens.shape[0], tokens.shape[1] - 1
    hidden = forward(params, config, tokens[:, :-1], lengths, dtype, implementation)
    chunk = max(1, TOKENS // batch)
    first = lengths - predicted

    # Contexts are mostly longer than continuations, so each row's chunks start where its own continuation does.
    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        totals, greedy = carry
        place = first[:, None] + i * chunk + jnp.arange(chunk)  # [B, C]
        counts = place < lengths[:, None]
        place = jnp.minimum(place, length - 1)
        targets = jnp.take_along_axis(tokens, place + 1, axis=1).reshape(-1)
        states = jnp.take_along_axis(hidden, place[:, :, None], axis=1).reshape(batch * chunk, -1)
        logits = decoder.logits(params, config, states)  # [B * C, V]
        scores = logits_lib.log_probability(logits, targets).reshape(batch, chunk)
        is_best = (logits_lib.best(logits) == targets).reshape(batch, chunk)
        return totals + jnp.sum(jnp.where(counts, scores, 0), axis=1), greedy & jnp.all(is_best | ~counts, axis=1)

    chunks = (jnp.max(predicted) + chunk - 1) // chunk
    return lax.fori_loop(0, chunks, add, (jnp.zeros(batch, jnp.float32), jnp.ones(batch, bool)))
