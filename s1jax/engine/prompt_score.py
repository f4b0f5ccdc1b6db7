"""Computes the log-probability of every token of a prompt, and the most probable token at each place.

Compilation depends on the model, the batch size and the length of the longest prompt, both rounded up to powers of two.

Axis letters: B batch, T prompt length, C chunk length, D model, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s1jax.config.model import ModelConfig
from s1jax.engine import buckets, score
from s1jax.engine import logits as logits_lib
from s1jax.errors import UserError
from s1jax.model import decoder

_ROWS = 8  # prompts of a batch


@dataclasses.dataclass(frozen=True)
class PromptScore:
    """What the model thinks of a prompt of n tokens.

    Attributes:
      logprobs: float32 [n], log-probability of each token in nats after those before it; 0 for the first, which has
        nothing before it.
      best: int32 [n], the most probable token after each token, so that `best[-1]` follows the prompt.
      best_logprobs: float32 [n], of those.
    """

    logprobs: np.ndarray
    best: np.ndarray
    best_logprobs: np.ndarray


def score_prompts(
    params: Mapping[str, Any], config: ModelConfig, prompts: Sequence[Sequence[int]], *, dtype: str = "float32"
) -> list[PromptScore]:
    """Scores prompts.

    Args:
      params: tree of `s1jax.model.decoder`, on one device.
      config: shape of the model.
      prompts: token ids, at least one each.
      dtype: of activations; logits and softmax are float32.

    Raises:
      UserError: before anything runs, for a prompt that is empty or exceeds the model's context, or an id outside the
        vocabulary.
    """
    for i, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {i}"
        if not 1 <= len(prompt) <= config.context_length:
            raise UserError(
                f"{name} has {len(prompt)} tokens; give 1 to {config.context_length}, the model's context length."
            )
        bad = [token for token in prompt if not 0 <= token < config.vocab_size]
        if bad:
            raise UserError(f"{name}: id {bad[0]} is outside the model's vocabulary of {config.vocab_size} ids.")
    implementation = score.attention(params, config, dtype)
    found: list[PromptScore] = []
    for start in range(0, len(prompts), _ROWS):
        batch = prompts[start : start + _ROWS]
        length = score.padded(max(map(len, batch)), config)
        tokens = np.zeros((buckets.power_of_two(len(batch)), length), np.int32)
        lengths = np.ones(len(tokens), np.int32)
        for row, prompt in enumerate(batch):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        arrays = jax.device_get(
            _score(params, tokens, lengths, config=config, dtype=dtype, implementation=implementation)
        )
        for row, prompt in enumerate(batch):
            own, best, best_logprobs = (array[row, : len(prompt)] for array in arrays)
            found.append(PromptScore(np.concatenate([np.zeros(1, np.float32), own[:-1]]), best, best_logprobs))
    return found


@functools.partial(jax.jit, static_argnames=("config", "dtype", "implementation"))
def _score(
    params: Mapping[str, Any],
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    config: ModelConfig,
    dtype: str,
    implementation: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores one batch.

    Args:
      params: weights.
      tokens: int32 [B, T], padded on the right.
      lengths: int32 [B], 1..T.
      config: shape of the model.
      dtype: of activations.
      implementation: of attention.

    Returns:
      float32 [B, T], log-probability of the token after each place; int32 [B, T], the most probable token there;
      float32 [B, T], its log-probability.
    """
    batch, length = tokens.shape
    hidden = score.forward(params, config, tokens, lengths, dtype, implementation)
    following = jnp.roll(tokens, -1, axis=1)
    chunk = min(max(1, score.TOKENS // batch), length)

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first = jnp.minimum(i * chunk, length - chunk)  # the last chunk overlaps the one before it
        states = lax.dynamic_slice_in_dim(hidden, first, chunk, 1).reshape(batch * chunk, -1)
        targets = lax.dynamic_slice_in_dim(following, first, chunk, 1).reshape(-1)
        logits = decoder.logits(params, config, states)  # [B * C, V]
        best = logits_lib.best(logits)
        new = (logits_lib.log_probability(logits, targets), best, logits_lib.log_probability(logits, best))
        return tuple(  # type: ignore[return-value]
            lax.dynamic_update_slice_in_dim(all_, part.reshape(batch, chunk), first, 1)
            for all_, part in zip(carry, new, strict=True)
        )

    empty = jnp.zeros((batch, length), jnp.float32)
    return lax.fori_loop(0, -(-length // chunk), add, (empty, empty.astype(jnp.int32), empty))
