"""Checks requests against a model's context length before any of them is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from s1jax.config.sampling import SamplingParams
from s1jax.engine import sequence
from s1jax.engine.encoding import Encoder
from s1jax.engine.request import Request


def longest(encoder: Encoder, requests: Sequence[Request], params: SamplingParams, context_length: int) -> int:
    """Returns the most tokens that the sequence of any request can have, prompt included; 0 without requests.

    Args:
      encoder: of the model's tokenizer and chat format.
      requests: what is to be sampled.
      params: of requests that have none of their own.
      context_length: of the model.

    Raises:
      UserError: names the first request that has a bad prompt or outgrows the context length.
    """
    most = 0
    for i, request in enumerate(requests):
        encoded = encoder.encode_one(request, params, f"prompt {i}")
        tokens = sequence.longest(encoded, encoder.delimiters)
        sequence.check_length(encoded, tokens, context_length)
        most = max(most, tokens)
    return most
