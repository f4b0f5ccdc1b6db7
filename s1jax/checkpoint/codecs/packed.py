"""Codes of a few bits in 32-bit words, and floats of 8 bits, as Hugging Face checkpoints hold them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# Rows converted at a time, so that no second copy of a matrix exists in float32.
_ROWS = 256

_E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes of words, the first in the lowest bits; a code may begin in one word and end in the next.

    Args:
      words: int32 [rows, n].
      bits: of a code, at most 8.
      count: codes of a row.

    Returns:
      uint8 [rows, count].
    """
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits in (1, 2, 4, 8):
        each = 8 // bits
        codes = np.empty([len(data), data.shape[1] * each], np.uint8)
        for place in range(each):
            codes[:, place::each] = (data >> (place * bits)) & ((1 << bits) - 1)
        return codes[:, :count]
    places = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits].reshape(len(data), count, bits)
    return np.packbits(places, axis=2, bitorder="little")[:, :, 0]


def scale_columns(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, groups: np.ndarray | int
) -> np.ndarray:
    """(codes - zeros) * scales, where each group of columns has a scale in each row.

    Args:
      codes: [rows, columns] of integers or floats.
      scales: float32 [rows, groups]; one row stands for all.
      zeros: as `scales`, or None.
      groups: columns of a group, or the group of each column.

    Returns:
      float32 [rows, columns].
    """
    rows, columns = codes.shape
    out = np.empty(codes.shape, np.float32)
    groups = min(groups, columns) if isinstance(groups, int) else groups
    whole = isinstance(groups, int) and columns % groups == 0

    def spread(values: np.ndarray, start: int) -> np.ndarray:
        part = values if len(values) == 1 else values[start : start + _ROWS]
        if whole:
            return part[:, :, None]
        return np.repeat(part, groups, 1)[:, :columns] if isinstance(groups, int) else part[:, groups]

    for start in range(0, rows, _ROWS):
        target = out[start : start + _ROWS]
        target[...] = codes[start : start + _ROWS]
        target = target.reshape(len(target), -1, groups) if whole else target
        if zeros is not None:
            target -= spread(zeros, start)
        target *= spread(scales, start)
    return out


def decode_e4m3(data: np.ndarray) -> np.ndarray:
    """uint8 of any shape -> the float32 numbers that float8_e4m3fn has for these bytes."""
    return _E4M3[data]


def repeat_rows(values: np.ndarray, height: int, rows: int) -> np.ndarray:
    """[groups, n] -> [rows, n]: each row `height` times, and no more than `rows` in all."""
    return np.repeat(values, min(height, rows), 0)[:rows]
