"""Which kind of weights each tensor of a GGUF file gets: llama.cpp's choice (src/llama-quant.cpp).

Norms, biases, routers and all that is not a matrix stay float32. The output projection, and in Q4_K_M and Q4_K (which
llama.cpp calls Q4_K_S) some matrices of attention values and of MLPs, get more bits than the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import gguf

from s1jax.checkpoint.codecs import blocks
from s1jax.config.layers import GQA
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError

# Type of a file -> the kind of most of its matrices, and llama.cpp's number for it.
TYPES = {
    "F32": ("F32", gguf.LlamaFileType.ALL_F32),
    "F16": ("F16", gguf.LlamaFileType.MOSTLY_F16),
    "BF16": ("BF16", gguf.LlamaFileType.MOSTLY_BF16),
    "Q8_0": ("Q8_0", gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": ("Q4_0", gguf.LlamaFileType.MOSTLY_Q4_0),
    "Q5_0": ("Q5_0", gguf.LlamaFileType.MOSTLY_Q5_0),
    "MXFP4": ("MXFP4", gguf.LlamaFileType.MOSTLY_MXFP4_MOE),
    "Q6_K": ("Q6_K", gguf.LlamaFileType.MOSTLY_Q6_K),
    "Q4_K": ("Q4_K", gguf.LlamaFileType.MOSTLY_Q4_K_S),
    "Q4_K_M": ("Q4_K", gguf.LlamaFileType.MOSTLY_Q4_K_M),
}
_PLAIN = ("F32", "F16", "BF16")

# For rows that a block of 256 does not divide.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def kinds(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], file_type: str) -> dict[str, str]:
    """Name of a tensor -> the kind of its weights.

    Args:
      config: of the model.
      shapes: of its stored tensors.
      file_type: one of `TYPES`.

    Raises:
      UserError: a row that no block divides.
    """
    chosen = {}
    for name, shape in shapes.items():
        kind = _kind(config, name, shapes, file_type) if _is_quantised(name, shape) else "F32"
        if kind not in _PLAIN:
            kind = _fallback(name, shape[-1], kind)
        chosen[name] = kind
    return chosen


def _is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix of those that may have few bits; the others are float32 in every file."""
    small = name.endswith(("_norm.weight", "ffn_gate_inp.weight")) or not name.endswith(".weight")
    return len(shape) > 1 and not small


def _kind(config: ModelConfig, name: str, shapes: Mapping[str, tuple[int, ...]], file_type: str) -> str:
    """The kind of a matrix before its width is looked at."""
    kind, _ = TYPES[file_type]
    if kind in _PLAIN:
        return kind
    tied = "output.weight" not in shapes
    if file_type == "MXFP4":  # of experts; of all layers where there are none
        is_expert = "_exps." in name if config.experts else name.startswith("blk.")
        return kind if is_expert else "Q8_0"
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        if shapes[name][-1] % blocks.block(kind)[0]:
            return "Q8_0"
        return kind if kind == "Q8_0" else "Q6_K"
    number = re.match(r"blk\.(\d+)\.", name)
    layer = int(number[1]) if number else config.num_layers
    eight = config.experts is not None and config.experts.num_experts == 8  # attention is small beside them
    k_mix = file_type in ("Q4_K", "Q4_K_M")
    if name.endswith(("attn_v.weight", "attn_qkv.weight")):
        return "Q8_0" if eight else _values(config, layer, kind, file_type)
    if name.endswith("attn_k.weight"):
        return "Q8_0" if eight else kind
    if name.endswith("attn_output.weight"):
        return "Q5_K" if eight and k_mix else kind
    if "ffn_down" in name and k_mix:
        if file_type == "Q4_K_M":
            return "Q6_K" if _more_bits(layer, config.num_layers) else kind
        return "Q5_K" if layer < config.num_layers // 8 else kind
    return kind


def _values(config: ModelConfig, layer: int, kind: str, file_type: str) -> str:
    """The kind of the matrix that makes values of attention."""
    if file_type == "Q4_K_M" and _more_bits(layer, config.num_layers):
        return "Q6_K"
    if file_type == "Q4_K" and layer < 4:
        return "Q5_K"
    return "Q5_K" if kind == "Q4_K" and _is_70b(config) else kind


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer gets more bits: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _is_70b(config: ModelConfig) -> bool:
    """Whether llama.cpp takes a model for one of 70 billion weights, by its number of layers."""
    attention = config.groups[0].pattern[0].attention
    return config.num_layers == 80 and isinstance(attention, GQA) and attention.num_heads != attention.num_kv_heads


def _fallback(name: str, width: int, kind: str) -> str:
    """A kind whose blocks divide a row."""
    if not width % blocks.block(kind)[0]:
        return kind
    if kind in _FALLBACKS:
        other = _FALLBACKS[kind]
        return other if not width % blocks.block(other)[0] else "F16"
    raise UserError(
        f"tensor {name} has rows of {width} weights, which blocks of {blocks.block(kind)[0]} do not divide; {kind} "
        "cannot hold it, so choose --type=F16, BF16 or Q4_K_M."
    )
