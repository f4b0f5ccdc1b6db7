"""MinHash signatures and their bands: texts that share most of their n-grams share a band.

Two sets of Jaccard similarity s have equal rows of a signature with probability s, so they share one of b bands of r
rows with probability 1 - (1 - s^r)^b (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

_SEED = 0


class MinHash:
    """Signatures of one size; the same in every process and on every machine."""

    def __init__(self, bands: int, rows: int):
        """Draws the hash functions, one for each row of each band."""
        draw = np.random.Generator(np.random.PCG64(_SEED))
        self._rows = rows
        # Multiply-shift hashing wants odd factors.
        self._factors = draw.integers(0, 2**64, bands * rows, dtype=np.uint64) | np.uint64(1)
        self._terms = draw.integers(0, 2**64, bands * rows, dtype=np.uint64)

    def signature(self, grams: Iterable[tuple[str, ...]]) -> bytes:
        """Returns the signature of a set of n-grams that is not empty: bands x rows numbers of 4 bytes."""
        hashes = [zlib.crc32("\x1f".join(gram).encode("utf-8", "surrogatepass")) for gram in grams]
        values = np.array(hashes, np.uint64)[:, None] * self._factors + self._terms
        return (values.min(0) >> np.uint64(32)).astype("<u4").tobytes()

    def bands(self, signature: bytes) -> list[bytes]:
        """Returns the bands of a signature."""
        size = 4 * self._rows
        return [signature[start : start + size] for start in range(0, len(signature), size)]
