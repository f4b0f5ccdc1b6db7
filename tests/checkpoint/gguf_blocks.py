"""Scalar decoders of GGUF's quantized blocks, written from the format, and random blocks to try them on."""

import gguf as library
import numpy as np

Kind = library.GGMLQuantizationType

# Independent decoders: one block of bytes -> floats, element by element as ggml's C code stores them.


def _half(block, at):
    return float(block[at : at + 2].view(np.float16)[0])


def _q8_0(block):
    return [_half(block, 0) * int(q) for q in block[2:].view(np.int8)]


def _q4_0(block):
    d, packed = _half(block, 0), [int(byte) for byte in block[2:]]
    return [d * ((byte & 15) - 8) for byte in packed] + [d * ((byte >> 4) - 8) for byte in packed]


def _q4_1(block):
    d, m, packed = _half(block, 0), _half(block, 2), [int(byte) for byte in block[4:]]
    return [d * (byte & 15) + m for byte in packed] + [d * (byte >> 4) + m for byte in packed]


def _q4_k(block):
    d, dmin = _half(block, 0), _half(block, 2)
    s, packed = [int(byte) for byte in block[4:16]], [int(byte) for byte in block[16:]]
    values = []
    for j in range(8):
        if j < 4:
            scale, low = s[j] & 63, s[j + 4] & 63
        else:
            scale, low = s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4
        group = packed[32 * (j // 2) : 32 * (j // 2) + 32]
        values += [d * scale * (byte >> 4 if j % 2 else byte & 15) - dmin * low for byte in group]
    return values


def _q6_k(block):
    low, high = [int(byte) for byte in block[:128]], [int(byte) for byte in block[128:192]]
    scales, d = block[192:208].view(np.int8), _half(block, 208)
    values = [0.0] * 256
    for half in range(2):
        for i in range(32):
            bits = high[32 * half + i]
            for part in range(4):
                byte = low[64 * half + i + 32 * (part % 2)]
                q = (byte & 15 if part < 2 else byte >> 4) | (bits >> 2 * part & 3) << 4
                values[128 * half + 32 * part + i] = d * int(scales[8 * half + 2 * part + i // 16]) * (q - 32)
    return values


DECODERS = {Kind.Q8_0: _q8_0, Kind.Q4_0: _q4_0, Kind.Q4_1: _q4_1, Kind.Q4_K: _q4_k, Kind.Q6_K: _q6_k}


def random_blocks(kind, rows, columns, seed=0):
    """Random bytes [rows, bytes of columns] with finite scales."""
    size, num_bytes = library.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(256, size=(rows, columns // size, num_bytes), dtype=np.uint8)
    scales = rng.normal(0, 0.02, size=(rows, columns // size, 2)).astype(np.float16)
    if kind is Kind.Q6_K:
        blocks[..., 208:] = scales[..., :1].view(np.uint8)
    else:
        count = 2 if kind in (Kind.Q4_1, Kind.Q4_K) else 1
        blocks[..., : 2 * count] = scales[..., :count].view(np.uint8)
    return blocks.reshape(rows, -1)
