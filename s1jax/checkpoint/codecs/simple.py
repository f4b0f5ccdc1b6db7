"""GGUF's blocks of 32 weights with one scale, or a scale and a minimum: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

Bytes are those of llama.cpp's reference code. Source: ggml-quants.c of https://github.com/ggml-org/llama.cpp.
A block starts with its scale in float16, then the minimum if the kind has one, then the fifth bits, then the codes.
"""

from __future__ import annotations

import numpy as np

from s1jax.checkpoint.codecs.halves import half_bytes, halves

WEIGHTS = 32


def encode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 34]: the scale, then 32 signed bytes."""
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    # Half away from zero, as C's roundf; adding 0.5 first would round 0.49999997 up.
    size = np.abs(scaled)
    whole = np.floor(size)
    size -= whole
    size *= 2
    whole += np.floor(size, out=size)
    codes = np.copysign(whole, scaled, out=whole).astype(np.int8)
    return np.concatenate([half_bytes(scale), codes.view(np.uint8)], 1)


def decode_q8_0(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 34] -> float32 [blocks, 32]."""
    return halves(data[:, :2]) * data[:, 2:].view(np.int8)


def encode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 18]: the scale, then codes + 8 in nibbles."""
    scale, codes = _signed(blocks, 8)
    return np.concatenate([half_bytes(scale), _nibbles(codes)], 1)


def decode_q4_0(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 18] -> float32 [blocks, 32]."""
    return halves(data[:, :2]) * (from_nibbles(data[:, 2:]).view(np.int8) - np.int8(8))


def encode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 22]: the scale, fifth bits of codes + 16, then their nibbles."""
    scale, codes = _signed(blocks, 16)
    return np.concatenate([half_bytes(scale), _fifth_bits(codes), _nibbles(codes)], 1)


def decode_q5_0(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 22] -> float32 [blocks, 32]."""
    return halves(data[:, :2]) * (_five_bits(data[:, 2:]).view(np.int8) - np.int8(16))


def encode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 20]: the scale, the minimum, then codes in nibbles."""
    scale, low, codes = _unsigned(blocks, 15)
    return np.concatenate([half_bytes(scale), half_bytes(low), _nibbles(codes)], 1)


def decode_q4_1(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 20] -> float32 [blocks, 32]."""
    return halves(data[:, :2]) * from_nibbles(data[:, 4:]) + halves(data[:, 2:4])


def encode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 24]: the scale, the minimum, fifth bits of codes, then their nibbles."""
    scale, low, codes = _unsigned(blocks, 31)
    return np.concatenate([half_bytes(scale), half_bytes(low), _fifth_bits(codes), _nibbles(codes)], 1)


def decode_q5_1(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 24] -> float32 [blocks, 32]."""
    return halves(data[:, :2]) * _five_bits(data[:, 4:]) + halves(data[:, 2:4])


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 where the scale is 0 or so small that its inverse overflows (float16 has 0 there, too)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isinf(inverse), np.float32(0), inverse)


def _signed(blocks: np.ndarray, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """(scales, codes + zero): the weight of the largest size, the first of equals, gets the code -zero."""
    place = np.abs(blocks).argmax(1)[:, None]
    scale = (np.take_along_axis(blocks, place, 1) + np.float32(0)) / np.float32(-zero)  # never from -0.0
    codes = (blocks * _inverse(scale) + np.float32(zero + 0.5)).astype(np.uint8)
    return scale, np.minimum(codes, 2 * zero - 1, out=codes)


def _unsigned(blocks: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scales, minima, codes): the minimum gets the code 0, the maximum gets `top`."""
    low = blocks.min(1, keepdims=True)
    scale = (blocks.max(1, keepdims=True) - low) / np.float32(top)
    codes = ((blocks - low) * _inverse(scale) + np.float32(0.5)).astype(np.uint8)
    return scale, low, np.minimum(codes, top, out=codes)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes [blocks, 32] -> bytes [blocks, 16]: weights 0-15 in the low nibbles, 16-31 in the high ones."""
    return (codes[:, :16] & 15) | (codes[:, 16:] << 4)


def from_nibbles(data: np.ndarray) -> np.ndarray:
    """Bytes [blocks, n] -> nibbles [blocks, 2n]: all low ones, then all high ones."""
    return np.concatenate([data & 15, data >> 4], 1)


def _fifth_bits(codes: np.ndarray) -> np.ndarray:
    """The fifth bit of each code: bit i of 32 little-endian bits is that of weight i."""
    return np.packbits(codes >> 4, 1, bitorder="little")


def _five_bits(data: np.ndarray) -> np.ndarray:
    """Bytes [blocks, 20], fifth bits before nibbles -> codes [blocks, 32]."""
    return from_nibbles(data[:, 4:]) | (np.unpackbits(data[:, :4], axis=1, bitorder="little") << 4)
