"""Weights of 8-bit floats with a scale for each block, as in DeepSeek V3, or one for each tensor.

Layout: `weight` float8_e4m3fn [outputs, inputs], `weight_scale_inv` [outputs / height, inputs / width] rounded up; a
weight is the 8-bit float times the scale, the name notwithstanding. Checkpoints with one scale a tensor call it
`weight_scale`, too. Source: transformers' integrations/finegrained_fp8.py, vLLM's quantization/fp8.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from s1jax.checkpoint.codecs import mxfp4, packed
from s1jax.checkpoint.quantized.gptq import FLOATS
from s1jax.checkpoint.quantized.held import Held, Parts, floats
from s1jax.checkpoint.quantized.settings import Settings, refuse_skipped
from s1jax.config.schema import plain
from s1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FP8:
    """Weights of 8-bit floats.

    Attributes:
      block: rows and columns that share a scale; None: all of a tensor's.
      skipped: patterns of modules that are not quantised.
      where: name of the configuration in errors.
    """

    block: tuple[int, int] | None
    skipped: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, values: Settings) -> FP8:
        """Reads a `quantization_config`."""
        values.one_of("fmt", ["e4m3"], "e4m3")
        values.one_of("scale_fmt", ["float", "ue8m0"], "float")
        values.one_of("expert_dtype", ["fp8"], "fp8")
        values.one_of("activation_scheme", ["dynamic", "static"], "dynamic")
        values.empty("modules_to_convert")
        block = values.block("weight_block_size")
        skipped = values.words("modules_to_not_convert") + values.words("ignored_layers")
        values.ignore("quant_method dequantize kv_cache_scheme")
        return cls(block, skipped, values.where)

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        return "8-bit floats, " + (
            "one scale a tensor" if self.block is None else "blocks of {} x {}".format(*self.block)
        )

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Puts weights and scales together; scales of activations are left out."""
        named = {*parts.modules(".weight_scale_inv"), *parts.modules(".weight_scale")}
        named |= {module for module in parts.modules(".weight") if parts.left[f"{module}.weight"].kind == "F8_E4M3"}
        for module in sorted(named):
            refuse_skipped(module, self.skipped, self.where, "modules_to_not_convert")
            self._restore(parts, module)
        parts.drop_scales_of_activations()

    def _restore(self, parts: Parts, module: str) -> None:
        weight = parts.take(f"{module}.weight", ["F8_E4M3"])
        if len(weight.shape) != 2:
            raise UserError(f"{weight.file}: tensor {plain(weight.name)} is not a matrix; get the file again.")
        name = f"{module}.weight_scale_inv"
        if self.block is None and name not in parts.left:
            name = f"{module}.weight_scale"
        shape = None
        if self.block is not None:
            shape = [-(-size // block) for size, block in zip(weight.shape, self.block, strict=True)]
        scale = parts.take(name, [*FLOATS, "U8", "F8_E8M0"], shape)
        if shape is None and scale.shape not in ((), (1,), (1, 1)):
            raise UserError(
                f"{scale.file}: tensor {plain(scale.name)} has shape {list(scale.shape)} and quantization_config has "
                "no weight_block_size; get the file again."
            )
        block = self.block or weight.shape
        parts.put(weight.name, weight, weight.shape, lambda: decode(weight, scale, block))


def decode(weight: Held, scale: Held, block: tuple[int, ...]) -> np.ndarray:
    """8-bit floats [rows, columns] with a scale for each block -> float32."""
    values = scale.read() if scale.kind in ("U8", "F8_E8M0") else floats(scale)
    if values.dtype == np.uint8:
        values = mxfp4.scales(values)
    values = values.reshape(-(-weight.shape[0] // block[0]), -1)
    rows = packed.repeat_rows(values, block[0], weight.shape[0])
    return packed.scale_columns(packed.decode_e4m3(weight.read()), rows, None, block[1])
