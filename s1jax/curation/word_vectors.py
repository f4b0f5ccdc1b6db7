"""Represents texts by vectors without a model: hashed TF-IDF of their words."""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from s1jax.curation import words

WIDTH = 1024  # numbers of a vector: 59,029 questions are 242 MB


def embed(texts: Sequence[str], width: int = WIDTH) -> np.ndarray:
    """Returns one vector of length 1 for each text; zeros for one without words.

    A word's weight is (1 + log of its count in the text) times log((1 + texts) / (1 + texts that have it)) + 1, as in
    scikit-learn's TfidfVectorizer with `sublinear_tf`. Its place and sign are bits of a hash, so that words that share
    a place cancel on average (K. Weinberger et al., ICML 2009).

    Args:
      texts: in any order; the weights depend on all of them, each different text once.
      width: of a vector.

    Returns:
      float32 [texts, width].
    """
    counts = {text: collections.Counter(words.number_blind(text)) for text in dict.fromkeys(texts)}
    holders = collections.Counter(word for found in counts.values() for word in found)
    idf = {word: math.log((1 + len(counts)) / (1 + number)) + 1 for word, number in holders.items()}
    spots = {word: _spot(word, width) for word in holders}
    vectors = np.zeros((len(texts), width), np.float32)
    for row, text in enumerate(texts):
        for word in sorted(counts[text]):
            place, sign = spots[word]
            vectors[row, place] += sign * (1 + math.log(counts[text][word])) * idf[word]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _spot(word: str, width: int) -> tuple[int, int]:
    """Returns the place of a word in a vector, and its sign."""
    bits = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return (bits >> 1) % width, 1 if bits & 1 else -1
