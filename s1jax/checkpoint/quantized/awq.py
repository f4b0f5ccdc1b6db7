"""Weights as AutoAWQ stores them: four bits, packed along the outputs in an order of its own.

Layout ("gemm"): `qweight` int32 [inputs, outputs / 8], `qzeros` int32 [groups, outputs / 8], `scales` [groups,
outputs]. The nibbles of a word, from the lowest, belong to outputs 0 2 4 6 1 3 5 7 of its eight. A weight is
(code - zero) * scale. Source: AutoAWQ's utils/packing_utils.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import numpy as np

from s1jax.checkpoint.codecs import packed
from s1jax.checkpoint.quantized.gptq import FLOATS, drop_zero_bias
from s1jax.checkpoint.quantized.held import Held, Parts, floats
from s1jax.checkpoint.quantized.settings import Settings, refuse_skipped
from s1jax.config.schema import plain
from s1jax.errors import UserError

# Output i of eight -> its nibble.
_NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]

_HARMLESS = """
    backend batch_size block_name_to_quantize cache_block_outputs damp_percent dataset desc_act do_fuse exllama_config
    fuse_max_seq_len lm_head max_input_length meta model_seqlen module_name_preceding_first_block
    modules_in_block_to_quantize modules_to_fuse pad_token_id quant_method method sym tokenizer true_sequential
    act_group_aware
"""


@dataclasses.dataclass(frozen=True)
class AWQ:
    """Weights quantised by AWQ.

    Attributes:
      group: inputs that share a scale; -1: all.
      skipped: patterns of modules that are not quantised.
      where: name of the configuration in errors.
    """

    group: int
    skipped: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, values: Settings) -> AWQ:
        """Reads a `quantization_config`."""
        values.one_of("bits", [4], 4)
        values.one_of("w_bit", [4], 4)
        values.one_of("zero_point", [True], True)
        values.one_of("pack_dtype", ["int32"], "int32")
        for key in ("version", "format", "checkpoint_format"):
            values.one_of(key, ["gemm", "GEMM"], "gemm")
        group = values.positive("q_group_size", 128, or_all=True)
        found = cls(
            values.positive("group_size", group, or_all=True), values.words("modules_to_not_convert"), values.where
        )
        values.ignore(_HARMLESS)
        return found

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        return f"AWQ, 4 bits, {'one scale an output' if self.group == -1 else f'groups of {self.group}'}"

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Puts the tensors of every quantised module together."""
        for module in parts.modules(".qweight"):
            refuse_skipped(module, self.skipped, self.where, "modules_to_not_convert")
            words = parts.take(f"{module}.qweight", ["I32"])
            if len(words.shape) != 2:
                raise UserError(f"{words.file}: tensor {plain(words.name)} is not a matrix; get the file again.")
            inputs, outputs = words.shape[0], words.shape[1] * 8
            group = inputs if self.group == -1 else self.group
            if inputs % group:
                raise UserError(
                    f"{words.file}: {plain(module)} has {inputs} inputs, which groups of {group} do not divide; "
                    "quantization_config does not describe it, so get the file again."
                )
            scales = parts.take(f"{module}.scales", FLOATS, [inputs // group, outputs])
            zeros = parts.take(f"{module}.qzeros", ["I32"], [inputs // group, outputs // 8])
            read = functools.partial(_decode, words, scales, zeros, group)
            parts.put(f"{module}.weight", words, [outputs, inputs], read)
            drop_zero_bias(parts, module, wanted)


def _decode(words: Held, scales: Held, zeros: Held, group: int) -> np.ndarray:
    return packed.scale_columns(_codes(words), floats(scales).T, _codes(zeros).astype(np.float32), group)


def _codes(words: Held) -> np.ndarray:
    """uint8 [outputs, rows of the words]."""
    turned = np.ascontiguousarray(words.read().T)
    codes = np.empty([len(turned), 8, turned.shape[1]], np.uint8)
    for output, nibble in enumerate(_NIBBLES):
        codes[:, output] = (turned >> (4 * nibble)) & 15
    return codes.reshape(-1, turned.shape[1])
