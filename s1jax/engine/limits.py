"""Checks prompt rows against a model before any of them is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s1jax.config.sampling import SamplingParams
from s1jax.engine import scheduler
from s1jax.engine.encoding import Encoder

if TYPE_CHECKING:
    from s1jax.checkpoint.store import Metadata, Model


def longest(
    model: Model | Metadata, rows: Sequence[Mapping[str, Any]], params: SamplingParams, names: Sequence[str]
) -> int:
    """Returns the most tokens that the sequence of any row can have, prompt included; 0 without rows.

    Args:
      model: its tokenizer, chat format and context length count, not its weights.
      rows: see `s1jax.engine.encoding.Encoder.request`.
      params: for what a row does not say itself.
      names: what messages call the rows.

    Raises:
      UserError: names the first row that has a bad field or outgrows the context length.
    """
    encode, most = Encoder(model), 0
    for row, name in zip(rows, names, strict=True):
        request = encode.request(row, params, name)
        tokens = scheduler.longest(request, encode.delimiters)
        scheduler.check_length(request, tokens, model.config.context_length)
        most = max(most, tokens)
    return most
