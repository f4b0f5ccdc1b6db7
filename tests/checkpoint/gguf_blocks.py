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


def _q5_0(block):
    d, high, packed = _half(block, 0), int(block[2:6].view(np.uint32)[0]), [int(byte) for byte in block[6:]]
    low = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
    return [d * ((q | (high >> i & 1) << 4) - 16) for i, q in enumerate(low)]


def _q5_1(block):
    d, m, high = _half(block, 0), _half(block, 2), int(block[4:8].view(np.uint32)[0])
    packed = [int(byte) for byte in block[8:]]
    low = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
    return [d * (q | (high >> i & 1) << 4) + m for i, q in enumerate(low)]


def _q2_k(block):
    scales, packed = [int(byte) for byte in block[:16]], [int(byte) for byte in block[16:80]]
    d, dmin = _half(block, 80), _half(block, 82)
    values = []
    for i in range(256):
        half, shift, place = i // 128, i % 128 // 32, i % 32
        scale = scales[8 * half + 2 * shift + place // 16]
        values.append(d * (scale & 15) * (packed[32 * half + place] >> 2 * shift & 3) - dmin * (scale >> 4))
    return values


def _q3_k(block):
    high, packed = [int(byte) for byte in block[:32]], [int(byte) for byte in block[32:96]]
    s, d = [int(byte) for byte in block[96:108]], _half(block, 108)
    low4 = [byte & 15 for byte in s[:8]] + [byte >> 4 for byte in s[:8]]
    scales = [low4[j] | (s[8 + j % 4] >> 2 * (j // 4) & 3) << 4 for j in range(16)]
    values = []
    for i in range(256):
        half, shift, place = i // 128, i % 128 // 32, i % 32
        q = packed[32 * half + place] >> 2 * shift & 3
        q -= 0 if high[place] >> (4 * half + shift) & 1 else 4
        values.append(d * (scales[8 * half + 2 * shift + place // 16] - 32) * q)
    return values


def _q4_k(block):
    packed = [int(byte) for byte in block[16:]]
    return _by_eight(block, [[byte >> 4 * (j % 2) & 15 for byte in packed[32 * (j // 2) :][:32]] for j in range(8)])


def _q5_k(block):
    high, packed = [int(byte) for byte in block[16:48]], [int(byte) for byte in block[48:]]
    groups = [
        [byte >> 4 * (j % 2) & 15 | (high[i] >> j & 1) << 4 for i, byte in enumerate(packed[32 * (j // 2) :][:32])]
        for j in range(8)
    ]
    return _by_eight(block, groups)


def _by_eight(block, groups):
    """Eight groups of 32, each with a scale and a minimum of six bits."""
    d, dmin = _half(block, 0), _half(block, 2)
    s = [int(byte) for byte in block[4:16]]
    values = []
    for j in range(8):
        if j < 4:
            scale, low = s[j] & 63, s[j + 4] & 63
        else:
            scale, low = s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4
        values += [d * scale * q - dmin * low for q in groups[j]]
    return values


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _iq4_nl(block):
    d, packed = _half(block, 0), [int(byte) for byte in block[2:]]
    return [d * _IQ4[byte & 15] for byte in packed] + [d * _IQ4[byte >> 4] for byte in packed]


def _iq4_xs(block):
    d, high, low = _half(block, 0), int(block[2:4].view(np.uint16)[0]), [int(byte) for byte in block[4:8]]
    values = []
    for j in range(8):
        scale = (low[j // 2] >> 4 * (j % 2) & 15 | (high >> 2 * j & 3) << 4) - 32
        packed = [int(byte) for byte in block[8 + 16 * j : 24 + 16 * j]]
        values += [d * scale * _IQ4[byte & 15] for byte in packed] + [d * scale * _IQ4[byte >> 4] for byte in packed]
    return values


def _mxfp4(block):
    scale, packed = 2.0 ** (int(block[0]) - 127), [int(byte) for byte in block[1:]]
    table = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
    return [scale * table[byte & 15] for byte in packed] + [scale * table[byte >> 4] for byte in packed]


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


DECODERS = {
    Kind.Q8_0: _q8_0,
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q5_0: _q5_0,
    Kind.Q5_1: _q5_1,
    Kind.Q2_K: _q2_k,
    Kind.Q3_K: _q3_k,
    Kind.Q4_K: _q4_k,
    Kind.Q5_K: _q5_k,
    Kind.Q6_K: _q6_k,
    Kind.IQ4_NL: _iq4_nl,
    Kind.IQ4_XS: _iq4_xs,
    Kind.MXFP4: _mxfp4,
}
_SCALES_AT = {Kind.Q6_K: 208, Kind.Q2_K: 80, Kind.Q3_K: 108}  # of blocks that do not begin with them
_TWO_SCALES = (Kind.Q4_1, Kind.Q5_1, Kind.Q2_K, Kind.Q4_K, Kind.Q5_K)


def random_blocks(kind, rows, columns, seed=0):
    """Random bytes [rows, bytes of columns] with finite scales."""
    size, num_bytes = library.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(256, size=(rows, columns // size, num_bytes), dtype=np.uint8)
    scales = rng.normal(0, 0.02, size=(rows, columns // size, 2)).astype(np.float16)
    if kind is Kind.MXFP4:  # a power of two
        blocks[..., 0] = rng.integers(110, 130, size=blocks.shape[:-1])
    else:
        at, count = _SCALES_AT.get(kind, 0), 2 if kind in _TWO_SCALES else 1
        blocks[..., at : at + 2 * count] = scales[..., :count].view(np.uint8)
    return blocks.reshape(rows, -1)
