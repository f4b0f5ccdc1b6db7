"""GGUF's blocks of 256 weights whose groups have quantised scales: Q4_K, Q5_K, Q6_K.

The search for scales is that of llama.cpp without an importance matrix, with sums in its order, so the bytes are the
same. Only codes whose group has a scale of 0 differ: here they are 0, there what the search left. Arrays are
[weights of a group, groups] while searching, so that numpy works along long rows.
Source: ggml-quants.c of https://github.com/ggml-org/llama.cpp (make_qx_quants, make_qkx2_quants).
"""

from __future__ import annotations

import numpy as np

from s1jax.checkpoint.codecs.halves import half_bytes, halves

WEIGHTS = 256
_ONE = np.float32(1)
# With larger weights, sums of the search are beyond float32, in llama.cpp as well.
_LARGEST = np.float32(2**17)
_TINY = np.float32(1e-15)  # weights or scales that are all smaller are written as 0


def encode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 144]: scale and minimum in float16, 12 bytes of 6-bit ones, nibbles."""
    head, codes = _scales_and_minima(blocks, top=15, first=-1.0, steps=21)
    return np.concatenate([*head, _nibbles(codes)], 1)


def decode_q4_k(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 144] -> float32 [blocks, 256]."""
    return _apply(data, _from_nibbles(data[:, 16:]))


def encode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 176]: as Q4_K, with 32 bytes of fifth bits before the nibbles."""
    head, codes = _scales_and_minima(blocks, top=31, first=-0.5, steps=16)
    fifth = np.packbits(codes >> 4, 1, bitorder="little").reshape(-1, 32)  # bit i of a byte is that of group i
    return np.concatenate([*head, fifth, _nibbles(codes & 15)], 1)


def decode_q5_k(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 176] -> float32 [blocks, 256]."""
    fifth = np.unpackbits(data[:, None, 16:48], axis=1, bitorder="little")
    return _apply(data, _from_nibbles(data[:, 48:]) | (fifth << 4))


def encode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 210]: low nibbles, high pairs of bits, 16 scales of a byte, a float16."""
    x = _groups(blocks, 16)
    found = _search_scale(x, 32).reshape(-1, 16)
    place = np.abs(found).argmax(1)[:, None]
    largest = np.take_along_axis(found, place, 1)
    inverse = np.where(np.abs(largest) < _TINY, 0, np.float32(-128) / np.where(largest == 0, _ONE, largest))
    scales = np.minimum(np.rint(inverse * found), 127)
    scale = half_bytes(np.where(inverse == 0, 0, _ONE / np.where(inverse == 0, _ONE, inverse)))
    step = (halves(scale) * scales).reshape(-1)
    codes = x / np.where(step == 0, _ONE, step)
    np.rint(codes, out=codes)
    codes = np.where(step == 0, -32, np.clip(codes, -32, 31, out=codes)) + 32
    # [blocks, half of the block, quarter of the half, weight]
    places = codes.T.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (places[:, :, :2] & 15) | (places[:, :, 2:] << 4)
    high = places >> 4
    high = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    signed = scales.astype(np.int8).view(np.uint8)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), signed, scale], 1)


def decode_q6_k(data: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 210] -> float32 [blocks, 256]."""
    low = data[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([low & 15, low >> 4], 2)
    high = data[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes = (low | ((high & 3) << 4)).reshape(-1, 16, 16).view(np.int8) - np.int8(32)
    step = halves(data[:, 208:]) * data[:, 192:208].view(np.int8)
    return (step[:, :, None] * codes).reshape(-1, WEIGHTS)


def _groups(blocks: np.ndarray, weights: int) -> np.ndarray:
    """[blocks, 256] -> a copy as [weights of a group, groups]."""
    largest = np.abs(blocks).max()
    if largest > _LARGEST:
        raise ValueError(f"a weight of {float(largest):.3g} is too large to be quantised")
    return np.ascontiguousarray(blocks.reshape(-1, weights).T)


def _search_scale(x: np.ndarray, top: int) -> np.ndarray:
    """The scale of each group for codes of -top to top - 1, by least squares with weights x².

    Args:
      x: float32 [weights, groups].
      top: of the codes.

    Returns:
      float32 [groups]: the best of 19 tries; 0 where all weights are tiny.
    """
    place = np.abs(x).argmax(0)[None]
    largest = np.take_along_axis(x, place, 0)[0]
    zero = np.abs(largest) < _TINY
    largest = np.where(zero, _ONE, largest)
    squares = x * x
    cubes = squares * x
    best = scale = np.zeros_like(largest)
    codes, product = np.empty_like(x), np.empty_like(x)
    for step in (0, *range(-9, 0), *range(1, 10)):
        np.multiply(x, -(top + np.float32(0.1) * np.float32(step)) / largest, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, -top, top - 1, out=codes)
        xl = np.multiply(cubes, codes, out=product).sum(0)
        np.multiply(squares, codes, out=product)
        product *= codes
        ll = product.sum(0)
        better = (ll > 0) & (xl * xl > best * ll)
        tried = xl / np.where(ll > 0, ll, _ONE)
        scale = np.where(better, tried, scale)
        best = np.where(better, tried * xl, best)
    return np.where(zero, np.float32(0), scale)


def _scales_and_minima(blocks: np.ndarray, top: int, first: float, steps: int) -> tuple[list[np.ndarray], np.ndarray]:
    """What Q4_K and Q5_K share: eight groups of 32 with a scale and a minimum of 6 bits each.

    Returns:
      the first 16 bytes of each block in three parts, and uint8 codes [blocks, 8, 32].
    """
    x = _groups(blocks, 32)
    scales, minima = (found.reshape(-1, 8) for found in _search_scale_and_minimum(x, top, first, steps))
    packed, halved, steps_of = [], [], []
    for found in (scales, minima):
        largest = np.maximum(found.max(1, keepdims=True), 0)
        some = largest > _TINY
        inverse = np.where(some, np.float32(63) / np.where(some, largest, _ONE), np.float32(0))
        codes = np.clip(np.rint(inverse * found), 0, 63)
        packed.append(codes.astype(np.uint8))
        halved.append(half_bytes(largest / np.float32(63)))
        steps_of.append((halves(halved[-1]) * codes).reshape(-1))
    step, low = steps_of
    codes = x + low
    codes /= np.where(step == 0, _ONE, step)
    np.rint(codes, out=codes)
    np.clip(codes, 0, top, out=codes)
    codes *= step != 0
    return [*halved, _pack_six_bits(*packed)], codes.T.astype(np.uint8).reshape(-1, 8, 32)


def _search_scale_and_minimum(x: np.ndarray, top: int, first: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum of each group for codes of 0 to `top`, by least squares with weights sqrt(mean x²) + |x|.

    Args:
      x: float32 [32, groups].
      top: the largest code.
      first: added to `top` in the first try; each further one adds 0.1.
      steps: number of tries.

    Returns:
      (scales, minima) float32 [groups]; minima are positive and are to be subtracted.
    """
    product = x * x
    weights = np.abs(x)
    weights += np.sqrt(product.sum(0) / np.float32(x.shape[0]))
    weight_sum = weights.sum(0)
    x_sum = np.multiply(weights, x, out=product).sum(0)
    high, low = x.max(0), np.minimum(x.min(0), 0)
    flat = high == low
    high = np.where(flat, low + _ONE, high)
    codes = np.empty_like(x)

    def quantise(inverse: np.ndarray) -> None:
        np.subtract(x, low, out=codes)
        np.multiply(codes, inverse, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, 0, top, out=codes)

    def error(scale: np.ndarray, low: np.ndarray) -> np.ndarray:
        np.multiply(codes, scale, out=product)
        np.add(product, low, out=product)
        np.subtract(product, x, out=product)
        np.multiply(product, product, out=product)
        return np.multiply(product, weights, out=product).sum(0)

    with np.errstate(all="ignore"):  # what is not a number is never better
        inverse = np.float32(top) / (high - low)
        scale = _ONE / inverse
        quantise(inverse)
        best = error(scale, low)
        for step in range(steps):
            quantise((np.float32(first) + np.float32(0.1) * np.float32(step) + np.float32(top)) / (high - low))
            np.multiply(weights, codes, out=product)
            l_sum = product.sum(0)
            xl_sum = (product * x).sum(0)
            product *= codes
            ll_sum = product.sum(0)
            determinant = weight_sum * ll_sum - l_sum * l_sum
            new_scale = (weight_sum * xl_sum - x_sum * l_sum) / determinant
            new_low = (ll_sum * x_sum - l_sum * xl_sum) / determinant
            above = new_low > 0
            new_scale = np.where(above, xl_sum / ll_sum, new_scale)
            new_low = np.where(above, np.float32(0), new_low)
            tried = error(new_scale, new_low)
            better = (determinant > 0) & (tried < best)
            best = np.where(better, tried, best)
            scale = np.where(better, new_scale, scale)
            low = np.where(better, new_low, low)
    return np.where(flat, np.float32(0), scale), -low


def _pack_six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima of 6 bits -> 12 bytes: the last four of each are split in 4 and 2 bits."""
    first = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    second = minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    third = (scales[:, 4:] & 15) | (minima[:, 4:] << 4)
    return np.concatenate([first, second, third], 1)


def _unpack_six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes -> eight scales and eight minima."""
    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], 1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], 1)
    return scales, minima


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes [blocks, 8, 32] -> bytes [blocks, 128]: even groups in the low nibbles, odd ones in the high ones."""
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).reshape(-1, 128)


def _from_nibbles(data: np.ndarray) -> np.ndarray:
    pairs = data.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], 2).reshape(-1, 8, 32)


def _apply(data: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Codes [blocks, 8, 32] with the scales and minima of the blocks' first 16 bytes -> weights [blocks, 256]."""
    scales, minima = _unpack_six_bits(data[:, 4:16])
    scales, minima = halves(data[:, :2]) * scales, halves(data[:, 2:4]) * minima
    return (scales[:, :, None] * codes - minima[:, :, None]).reshape(-1, WEIGHTS)
