"""GGUF's kinds of weights: rows of float32 to bytes, and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import ml_dtypes
import numpy as np

from s1jax.checkpoint.codecs import k_quants, mxfp4, simple

_Function = Callable[[np.ndarray], np.ndarray]

# Weights converted at a time. The arrays of a search stay in the processor's cache; a copy of a tensor never exists.
_CHUNK = 1 << 15
_SLAB = 1 << 20
_THREADS = 16


class NotFiniteError(ValueError):
    """A weight is infinite or not a number, so no kind can hold it."""


class Kind(NamedTuple):
    """How a kind stores weights: `weights` of them in `size` bytes; the functions take and return whole blocks."""

    weights: int
    size: int
    encode: _Function
    decode: _Function


def _plain(kind: np.dtype) -> Kind:
    """A float type as a block of one weight."""

    def encode(blocks: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = blocks.astype(kind)
        if not np.isfinite(stored).all():
            raise ValueError(f"a weight of {float(np.abs(blocks).max()):.3g} is beyond {kind.name}'s largest number")
        return stored.view(np.uint8)

    def decode(data: np.ndarray) -> np.ndarray:
        return data.view(kind).astype(np.float32)

    return Kind(1, kind.itemsize, encode, decode)


KINDS = {
    "F32": _plain(np.dtype("<f4")),
    "F16": _plain(np.dtype("<f2")),
    "BF16": _plain(np.dtype(ml_dtypes.bfloat16)),
    "Q8_0": Kind(32, 34, simple.encode_q8_0, simple.decode_q8_0),
    "Q4_0": Kind(32, 18, simple.encode_q4_0, simple.decode_q4_0),
    "Q4_1": Kind(32, 20, simple.encode_q4_1, simple.decode_q4_1),
    "Q5_0": Kind(32, 22, simple.encode_q5_0, simple.decode_q5_0),
    "Q5_1": Kind(32, 24, simple.encode_q5_1, simple.decode_q5_1),
    "MXFP4": Kind(32, 17, mxfp4.encode, mxfp4.decode),
    "Q4_K": Kind(256, 144, k_quants.encode_q4_k, k_quants.decode_q4_k),
    "Q5_K": Kind(256, 176, k_quants.encode_q5_k, k_quants.decode_q5_k),
    "Q6_K": Kind(256, 210, k_quants.encode_q6_k, k_quants.decode_q6_k),
}


def block(kind: str) -> tuple[int, int]:
    """(weights, bytes) of one block of a kind of `KINDS`."""
    return KINDS[kind][:2]


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Quantises rows.

    Args:
      values: [rows, width] of any float type and memory order; the width is a multiple of the kind's block.
      kind: one of `KINDS`.

    Returns:
      uint8 [rows, width / weights * size of a block].

    Raises:
      NotFiniteError: a weight is infinite or not a number.
      ValueError: a width that no block divides, or a weight that the kind cannot hold.
    """
    rows, width = values.shape
    weights, size, function, _ = KINDS[kind]
    if width % weights:
        raise ValueError(f"a width of {width} is not a multiple of {kind}'s {weights} weights a block")
    out = np.empty([rows, width // weights * size], np.uint8)
    height = max(_SLAB // max(width, 1), 1)
    for start in range(0, rows, height):
        slab = np.ascontiguousarray(values[start : start + height], np.float32)
        if not np.isfinite(slab).all():
            raise NotFiniteError("a weight is infinite or not a number")
        _convert(function, slab.reshape(-1, weights), out[start : start + height].reshape(-1, size), _CHUNK // weights)
    return out


def _convert(function: _Function, blocks: np.ndarray, target: np.ndarray, step: int) -> None:
    """Fills `target` with what `function` makes of `step` blocks at a time, on all cores.

    numpy gives the interpreter free while it computes: the processor's time is the same with one thread and with many.
    """

    def convert(start: int) -> None:
        target[start : start + step] = function(blocks[start : start + step])

    starts = range(0, len(blocks), step)
    with futures.ThreadPoolExecutor(max(1, min(len(starts), os.cpu_count() or 1, _THREADS))) as pool:
        for _ in pool.map(convert, starts):  # raises what a thread raised
            pass


def decode(data: np.ndarray, kind: str) -> np.ndarray:
    """Dequantises rows.

    Args:
      data: uint8 [rows, bytes], a multiple of the kind's block.
      kind: one of `KINDS`.

    Returns:
      float32 [rows, width].

    Raises:
      ValueError: rows that are not whole blocks.
    """
    rows, length = data.shape
    weights, size, _, function = KINDS[kind]
    if length % size:
        raise ValueError(f"rows of {length} bytes are not whole blocks of {kind}'s {size} bytes")
    out = np.empty([rows, length // size * weights], np.float32)
    height = max(_CHUNK // max(out.shape[1], 1), 1)
    for start in range(0, rows, height):
        blocks = np.ascontiguousarray(data[start : start + height]).reshape(-1, size)
        out[start : start + height] = function(blocks).reshape(-1, out.shape[1])
    return out
