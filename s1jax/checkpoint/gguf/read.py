"""Weights of GGUF files, dequantised into our tree.

Names and layouts come from `s1jax.checkpoint.names`. One thing is special to llama.cpp: files of the `llama`
architecture keep the rows of query and key heads interleaved (pairs of a rotation side by side) where our rotation
pairs row i with row i + H/2; `read_params` undoes it. `qwen2` and `qwen3` files are stored as we compute.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from s1jax.checkpoint import names as names_lib
from s1jax.checkpoint.families.table import FAMILIES
from s1jax.checkpoint.gguf.file import File
from s1jax.checkpoint.gguf.parse import Tensor
from s1jax.config.model import ModelConfig
from s1jax.config.schema import plain
from s1jax.errors import UserError

# What the library dequantises. Left out is NVFP4, whose second scales are tensors of their own.
_QUANTIZED = (
    "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
READABLE = ("F32", "F16", *_QUANTIZED)

# Tensors that are a part of the configuration.
_CONFIGURATION = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Values dequantised at a time: bounds the copy of a large embedding to 64 MB in float32.
_CHUNK = 1 << 24


def read_params(reader: File, config: ModelConfig, where: str, dtype: npt.DTypeLike = np.float32) -> names_lib.Params:
    """Reads and dequantises the weights into our tree.

    Args:
      reader: from `file.open_file`.
      config: from `read_config`.
      where: name of the file in errors.
      dtype: of the result; float32 holds every dequantised value exactly.

    Returns:
      numpy arrays, layers stacked, every one filled.

    Raises:
      UserError: names missing, extra or misshaped tensors and unreadable types.
    """
    for tensor in reader.tensors:
        if tensor.kind not in READABLE:
            raise UserError(
                f"{where}: tensor {plain(tensor.name)} has type {tensor.kind}; s1jax reads "
                f"{', '.join(READABLE)}, so get another quantisation of the model."
            )
    tensors = [tensor for tensor in reader.tensors if tensor.name not in _CONFIGURATION]
    found = {tensor.name: (tensor.shape, where) for tensor in tensors}
    names_lib.check(config, "gguf", found, where)
    params = names_lib.allocate(config, dtype)
    targets = names_lib.views(config, params, "gguf")
    interleaved = FAMILIES[config.family].interleaved_in_gguf
    for tensor in tensors:
        if interleaved and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            _fill_halves(targets[tensor.name], tensor, config.head_dim)
        else:
            _fill(targets[tensor.name], tensor)
    return params


def _fill(target: Any, tensor: Tensor) -> None:
    """Copies a tensor into our arrays piece by piece, or whole where several arrays share it."""
    if not isinstance(target, np.ndarray):
        names_lib.copy(target, dequantize(tensor.data, gguf.GGMLQuantizationType[tensor.kind]))
        return
    if target.ndim > 2:  # experts
        for one, data in zip(target, tensor.data, strict=True):
            names_lib.copy(one, dequantize(data, gguf.GGMLQuantizationType[tensor.kind]))
        return
    step = max(1, _CHUNK // target.shape[-1])
    for start in range(0, len(target), step):
        piece = slice(start, start + step)
        names_lib.copy(target[piece], dequantize(tensor.data[piece], gguf.GGMLQuantizationType[tensor.kind]))


def _fill_halves(target: np.ndarray, tensor: Tensor, h: int) -> None:
    """As `_fill`, of rows of heads: stored (H/2, 2), ours (2, H/2)."""
    halves = np.reshape(target, (-1, 2, h // 2, target.shape[-1]), copy=False).swapaxes(1, 2)
    step = max(1, _CHUNK // (h * target.shape[-1]))
    for start in range(0, len(halves), step):
        heads = halves[start : start + step]
        rows = dequantize(tensor.data[start * h : (start + step) * h], gguf.GGMLQuantizationType[tensor.kind])
        heads[...] = rows.reshape(heads.shape)


def dequantize(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Returns stored values as float32 (F16 and F32 as they are); rows of quantised `data` are bytes."""
    return gguf.dequantize(data, kind) if kind.name in _QUANTIZED else data
