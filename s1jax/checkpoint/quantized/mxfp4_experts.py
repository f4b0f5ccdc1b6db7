"""Experts in MXFP4 as gpt-oss publishes them: `NAME_blocks` and `NAME_scales` instead of `NAME`.

Layout: blocks uint8 [experts, outputs, inputs / 32, 16], scales uint8 [experts, outputs, inputs / 32]. transformers
holds the matrices the other way around, [experts, inputs, outputs], and so does the tensor that comes out of here.
Source: transformers' integrations/mxfp4.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import ml_dtypes
import numpy as np

from s1jax.checkpoint.codecs import mxfp4
from s1jax.checkpoint.quantized.held import Held, Parts
from s1jax.checkpoint.quantized.settings import Settings, refuse_skipped
from s1jax.checkpoint.stored import copy
from s1jax.config.schema import plain
from s1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MXFP4:
    """Experts in MXFP4.

    Attributes:
      skipped: patterns of modules that are not quantised.
      where: name of the configuration in errors.
    """

    skipped: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, values: Settings) -> MXFP4:
        """Reads a `quantization_config`."""
        skipped = values.words("modules_to_not_convert")
        values.ignore("quant_method dequantize")
        return cls(skipped, values.where)

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        return "MXFP4"

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Puts blocks and scales together."""
        for name in sorted({*parts.modules("_blocks"), *parts.modules("_scales")}):
            blocks = parts.take(f"{name}_blocks", ["U8"])
            if len(blocks.shape) != 4 or blocks.shape[-1] != 16:
                raise UserError(
                    f"{blocks.file}: tensor {plain(blocks.name)} has shape {list(blocks.shape)}, which is not that of "
                    "MXFP4 blocks; get the file again."
                )
            refuse_skipped(name, self.skipped, self.where, "modules_to_not_convert")
            scales = parts.take(f"{name}_scales", ["U8"], blocks.shape[:3])
            experts, outputs, groups = blocks.shape[:3]
            parts.put(name, blocks, [experts, groups * 32, outputs], functools.partial(_decode, blocks, scales))


def _decode(blocks: Held, scales: Held) -> np.ndarray:
    """bfloat16 [experts, inputs, outputs], which holds every MXFP4 number exactly."""
    codes, exponents = blocks.read(), scales.read()
    if (exponents == 255).any():
        raise UserError(f"{scales.file}: tensor {plain(scales.name)} has a scale that is not a number; get it again.")
    experts, outputs, groups = exponents.shape
    out = np.empty([experts, groups * 32, outputs], ml_dtypes.bfloat16)
    for expert in range(experts):
        copy(out[expert], mxfp4.decode_pairs(codes[expert], exponents[expert]).T)
    return out
