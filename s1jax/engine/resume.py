"""Thinks longer: a finished sample as the beginning of a request with more thinking."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from s1jax.config.sampling import SamplingParams
from s1jax.engine import budget
from s1jax.engine.sequence import EncodedRequest, Resume, Sample
from s1jax.errors import UserError
from s1jax.text.delimiters import Delimiters


def reopened(request: EncodedRequest, sample: Sample, params: SamplingParams, delimiters: Delimiters) -> EncodedRequest:
    """Returns a request that goes on with the thinking of a finished sample: "think longer".

    Its tokens are those of `request` with `params` from the beginning.

    Args:
      request: of the sample.
      sample: finished; its answer is dropped.
      params: more thinking than that of `request`: a higher maximum if thinking was cut, more waits or a higher minimum
        if it ended by itself.
      delimiters: of the engine.

    Raises:
      UserError: `params` asks for no more thinking than the sample has.
    """
    start, thinking = len(delimiters.think_start), sample.thinking_tokens
    places = slice(start, start + thinking)
    ids, forced = sample.ids[places], sample.forced[places]
    starts = np.flatnonzero(forced & ~np.concatenate([[False], forced[:-1]]))
    # Waits below the minimum use up none of `num_waits`. Where empty waits were, nobody knows.
    known = len(starts) == sample.waits
    used = (
        int(np.count_nonzero(starts >= params.min_thinking_tokens))
        if known
        else request.params.num_waits - sample.waits_left
    )
    waits_left = params.num_waits - used
    below = thinking < params.min_thinking_tokens
    if thinking >= params.max_thinking_tokens:
        raise UserError(
            f"{request.name}: its thinking has {thinking} tokens, and max_thinking_tokens is"
            f" {params.max_thinking_tokens}; raise it to think longer."
        )
    if not sample.was_cut and not below and waits_left <= 0:
        raise UserError(
            f"{request.name}: its thinking ended by itself after {thinking} tokens; raise num_waits or"
            " min_thinking_tokens to think longer."
        )
    ended = not sample.was_cut
    fits = thinking + len(request.wait) <= params.max_thinking_tokens
    if ended and not fits:
        raise UserError(
            f"{request.name}: the wait string has {len(request.wait)} tokens, which do not fit between {thinking}"
            f" tokens of thinking and max_thinking_tokens {params.max_thinking_tokens}; raise it to think longer."
        )
    before = [*request.prompt, *delimiters.think_start, *ids.tolist()]
    begun = _begun(request.wait, ids, forced)
    state = budget.on_host(
        before[-1],
        start + thinking,
        sequence=budget.WAIT,
        position=0 if ended else begun,  # past its end nothing is forced
        fresh=bool(ended or not thinking or forced[-1]),
        thinking=thinking,
        waits=sample.waits + ended,
        waits_left=waits_left - (ended and not below),
    )
    resume = Resume(ids, forced, sample.logprobs[places], state)
    return dataclasses.replace(request, params=params, resume=resume)


def _begun(wait: Sequence[int], ids: np.ndarray, forced: np.ndarray) -> int:
    """Returns how many tokens of the wait are there already: a part of it if thinking was stopped inside, else all."""
    count = len(ids) - int(np.max(np.flatnonzero(~forced), initial=-1)) - 1
    return count if 0 < count < len(wait) and ids[len(ids) - count :].tolist() == list(wait[:count]) else len(wait)
