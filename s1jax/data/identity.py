"""Identifies a question by its text, so that rows keep their identity in any order, file or format."""

from __future__ import annotations

import hashlib
import unicodedata


def normalise(text: str) -> str:
    """Returns a text in Unicode's form NFKC, with single spaces for white space and none at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def question_id(question: str) -> str:
    """Returns 32 hex digits (128 bits of SHA-256) of the normalised text."""
    # Lone surrogates, which JSON can hold, have no UTF-8 form.
    return hashlib.sha256(normalise(question).encode("utf-8", "surrogatepass")).hexdigest()[:32]
