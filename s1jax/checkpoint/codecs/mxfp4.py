"""MXFP4: 32 weights of four bits (e2m1) that share a power of two.

The low three bits of a code choose a size of `SIZES`, the fourth is the sign. The scale is a byte e that stands for
2^(e - 127). GGUF's block is the scale, then 16 bytes whose low nibbles are weights 0-15; Hugging Face's files hold
scales and blocks in two tensors, and a byte holds two neighbours.
Sources: OCP Microscaling Formats 1.0; ggml-quants.c; transformers' integrations/mxfp4.py.
"""

from __future__ import annotations

import itertools

import numpy as np

from s1jax.checkpoint.codecs.simple import from_nibbles

WEIGHTS = 32
SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_VALUES = np.array([*SIZES, *(-size for size in SIZES)], np.float32)
# A byte of Hugging Face's files -> its two weights, the low nibble first.
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], 1)


def encode(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 17]; bytes are those of llama.cpp's reference code."""
    size = np.abs(blocks)
    largest = size.max(1, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(largest)) + np.float32(127 - 2)
    exponent = np.maximum(exponent, 0)  # -inf where all weights are 0, negative for those below 2^-125
    size = np.ldexp(size, (127 - exponent).astype(np.int32))
    codes = np.zeros(blocks.shape, np.uint8)
    for smaller, larger in itertools.pairwise(SIZES):
        codes += size > (smaller + larger) / 2  # a weight in the middle becomes the smaller one
    codes |= ((blocks < 0) & (codes > 0)).view(np.uint8) << 3
    return np.concatenate([exponent.astype(np.uint8), codes[:, :16] | (codes[:, 16:] << 4)], 1)


def decode(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 17] -> float32 [blocks, 32]."""
    return _VALUES[from_nibbles(data[:, 1:])] * scales(data[:, :1])


def scales(exponents: np.ndarray) -> np.ndarray:
    """uint8 -> float32 of the same shape: 2^(exponent - 127)."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)


def decode_pairs(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Dequantises the two tensors of a Hugging Face file.

    Args:
      blocks: uint8 [..., groups, 16]; a byte holds two neighbours, the low nibble first.
      exponents: uint8 [..., groups].

    Returns:
      float32 [..., groups * 32].
    """
    weights = from_pairs(np.ascontiguousarray(blocks))
    weights *= scales(exponents)[..., None]
    return weights.reshape(*blocks.shape[:-2], -1)


def from_pairs(data: np.ndarray) -> np.ndarray:
    """uint8 [..., n] -> the two e2m1 numbers of each byte, the low nibble first, float32 [..., 2n]."""
    return _PAIRS.view(np.uint64)[:, 0][data].view(np.float32)  # one look-up for two numbers
