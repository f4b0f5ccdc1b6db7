"""Scales in float16 as the bytes that GGUF's blocks hold."""

from __future__ import annotations

import numpy as np


def half_bytes(scales: np.ndarray) -> np.ndarray:
    """float32 [blocks, n] -> uint8 [blocks, 2n], rounded to even.

    Raises:
      ValueError: a scale beyond float16's largest number, which a reader would take for infinity.
    """
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(scales).astype("<f2")
    if np.isinf(rounded).any():
        largest = float(np.abs(scales).max())
        raise ValueError(f"a weight needs the scale {largest:.3g}, and float16, which holds scales, ends at 65504")
    return rounded.view(np.uint8)


def halves(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 2n] -> float32 [blocks, n]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)
