"""Counts the tokens of traces for rows that come without a count."""

from __future__ import annotations

import functools
import hashlib

from s1jax.io import assets
from s1jax.text.tokenizer import Tokenizer


@functools.cache
def _load(path: str) -> Tokenizer:
    inside = assets.path(path) / "tokenizer"  # of a checkpoint of s1jax
    return Tokenizer.load(inside if inside.is_dir() else path)


def count(path: str, text: str) -> int:
    """Returns the tokens of a text.

    Args:
      path: of a tokenizer, see `Tokenizer.load`, or a checkpoint.
      text: of a trace.

    Raises:
      UserError: there is no tokenizer.
    """
    return len(_load(path).encode_text(text))


def key(path: str) -> str:
    """Returns a digest of the files of a tokenizer; empty without a path."""
    if not path:
        return ""
    digest = hashlib.sha256()
    for name, content in sorted(_load(path).files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()
