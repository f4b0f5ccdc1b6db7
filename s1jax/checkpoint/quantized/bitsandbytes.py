"""Weights as bitsandbytes stores them: four bits with a scale for each run of weights, or int8 rows.

Layout of four bits: `weight` holds two codes a byte, the first in the high nibble, in the order of the flattened
matrix; `weight.quant_map` the 16 numbers that codes stand for; `weight.absmax` the scales, in float32 or, doubly
quantised, as bytes that stand for numbers of `weight.nested_quant_map` with scales of their own;
`weight.quant_state.bitsandbytes__nf4` the rest as JSON. Of int8: `weight` int8 [outputs, inputs] and `SCB` [outputs]; a
weight is code * SCB / 127. Source: bitsandbytes' functional.py (QuantState) and nn/modules.py (Linear8bitLt).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from s1jax.checkpoint.codecs import packed
from s1jax.checkpoint.quantized.gptq import FLOATS
from s1jax.checkpoint.quantized.held import Held, Parts, floats
from s1jax.checkpoint.quantized.settings import REMEDY, Settings, refuse_skipped
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError

_HARMLESS = """
    quant_method _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type
    bnb_4bit_use_double_quant llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight llm_int8_threshold
"""
_STATE = ".weight.quant_state.bitsandbytes__"


@dataclasses.dataclass(frozen=True)
class BitsAndBytes:
    """Weights quantised by bitsandbytes.

    Attributes:
      bits: 4 or 8.
      skipped: patterns of modules that are not quantised.
      where: name of the configuration in errors.
    """

    bits: int
    skipped: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, values: Settings) -> BitsAndBytes:
        """Reads a `quantization_config`."""
        four, eight = (values.optional(f"load_in_{bits}bit", bool, False) for bits in (4, 8))
        if four == eight:
            raise UserError(f"{values.where} asks for neither 4 nor 8 bits, or for both; get the file again.")
        skipped = values.words("llm_int8_skip_modules")
        values.ignore(_HARMLESS)
        return cls(4 if four else 8, skipped, values.where)

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        return f"bitsandbytes, {self.bits} bits"

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Puts the tensors of every quantised module together."""
        for kind in ("nf4", "fp4") if self.bits == 4 else ():
            for module in parts.modules(f"{_STATE}{kind}"):
                refuse_skipped(module, self.skipped, self.where, "llm_int8_skip_modules")
                _restore_four(parts, module, kind)
        for module in parts.modules(".SCB") if self.bits == 8 else ():
            refuse_skipped(module, self.skipped, self.where, "llm_int8_skip_modules")
            _restore_eight(parts, module)


def _restore_eight(parts: Parts, module: str) -> None:
    weight = parts.take(f"{module}.weight", ["I8"])
    if len(weight.shape) != 2:
        raise UserError(f"{weight.file}: tensor {plain(weight.name)} is not a matrix; get the file again.")
    scales = parts.take(f"{module}.SCB", FLOATS, weight.shape[:1])
    order = parts.optional(f"{module}.weight_format", ["U8", "I8", "I64"])
    if order is not None and order.read().any():
        raise UserError(f"{order.file}: tensor {plain(order.name)} is not 0, for rows in their order; {REMEDY}.")

    def read() -> np.ndarray:
        weights = packed.scale_columns(weight.read(), floats(scales)[:, None], None, weight.shape[1])
        weights *= np.float32(1 / 127)
        return weights

    parts.put(weight.name, weight, weight.shape, read)


def _restore_four(parts: Parts, module: str, kind: str) -> None:
    state = parts.take(f"{module}{_STATE}{kind}", ["U8"])
    known = _state(state)
    shape, block = known["shape"], known["blocksize"]
    size = math.prod(shape)
    # Other types than bytes hold the same bytes (bnb_4bit_quant_storage).
    codes = parts.take(f"{module}.weight", ["U8", "I8", *FLOATS])
    width = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}[codes.kind]
    if math.prod(codes.shape) * width != -(-size // 2):
        raise UserError(
            f"{codes.file}: tensor {plain(codes.name)} has shape {list(codes.shape)} where its state says "
            f"{list(shape)}; get the file again."
        )
    blocks = -(-size // block)
    table = parts.take(f"{module}.weight.quant_map", ["F32"], [16])
    nested = "nested_blocksize" in known
    scales = parts.take(f"{module}.weight.absmax", ["U8" if nested else "F32"], [blocks])
    more: tuple[Held, Held] | None = None
    if nested:
        count = -(-blocks // known["nested_blocksize"])
        more = (
            parts.take(f"{module}.weight.nested_absmax", ["F32"], [count]),
            parts.take(f"{module}.weight.nested_quant_map", ["F32"], [256]),
        )

    def read() -> np.ndarray:
        by_block = scales.read()
        if more is not None:
            outer = np.repeat(floats(more[0]), known["nested_blocksize"])[:blocks]
            by_block = floats(more[1])[by_block] * outer + np.float32(known["nested_offset"])
        data = np.ascontiguousarray(codes.read()).view(np.uint8).reshape(-1)
        numbers = floats(table)
        pairs = np.stack([numbers[np.arange(256) >> 4], numbers[np.arange(256) & 15]], 1)
        weights = pairs[data].reshape(-1)[:size]
        for start in range(0, blocks, 4096):
            part = slice(start * block, (start + 4096) * block)
            weights[part] *= np.repeat(by_block[start : start + 4096], block)[: weights[part].size]
        return weights.reshape(shape)

    parts.put(f"{module}.weight", state, shape, read)


def _state(tensor: Held) -> Mapping[str, Any]:
    """The JSON of a module's state, checked."""
    try:
        known = json.loads(tensor.read().tobytes())
        shape = tuple(known["shape"])
        nested = {"nested_blocksize", "nested_offset"} & known.keys()
        sizes = [*shape, known["blocksize"], *([known["nested_blocksize"]] if nested else [])]
        if len(shape) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"shape {shape}")
        if nested and not math.isfinite(known["nested_offset"]):
            raise ValueError("nested_offset")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{tensor.file}: tensor {plain(tensor.name)} is damaged ({shown(str(error), 100)}); get the file again."
        ) from None
    return {**known, "shape": shape}
