"""Weights as GPTQ's tools store them: codes packed along the inputs, scales and zeros for groups of inputs.

Layout: `qweight` int32 [inputs * bits / 32, outputs], `qzeros` int32 [groups, outputs * bits / 32], `scales`
[groups, outputs], and `g_idx` int32 [inputs], the group of each input. A weight is (code - zero) * scale. Version 1 of
the format stores zero - 1 modulo 2^bits. Source: AutoGPTQ's qlinear_cuda_old.py, GPTQModel's qlinear/torch.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from s1jax.checkpoint.codecs import packed
from s1jax.checkpoint.quantized.held import Held, Parts, floats
from s1jax.checkpoint.quantized.settings import REMEDY, Settings, search
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError

FLOATS = ("F16", "BF16", "F32")

_HARMLESS = """
    act_group_aware auto_forward_data_parallel backend batch_size block_name_to_quantize cache_block_outputs
    compute_device_filter damp_auto_increment damp_percent dataset device disable_exllama exllama_config exllama_version
    fail_safe fallback gc_mode gptaq gptaq_alpha hessian hyb_act lm_head max_input_length meta model_file_base_name
    model_name_or_path model_seqlen module_name_preceding_first_block modules_in_block_to_quantize mse offload_to_disk
    offload_to_disk_path pad_token_id parallel_packing quant_method method static_groups sym tokenizer true_sequential
    use_cuda_fp16 use_exllama v2 v2_alpha v2_memory_device vram_strategy wait_for_submodule_finalizers
"""


@dataclasses.dataclass(frozen=True)
class GPTQ:
    """Weights quantised by GPTQ.

    Attributes:
      bits: of a code.
      group: inputs that share a scale; -1: all.
      act_order: inputs of a group may be anywhere, so `g_idx` must be there.
      minus_one: zeros are stored minus one.
      skipped: regular expressions of modules that are not quantised.
      where: name of the configuration in errors.
    """

    bits: int
    group: int
    act_order: bool
    minus_one: bool
    skipped: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, values: Settings) -> GPTQ:
        """Reads a `quantization_config`."""
        values.empty("adapter", "is_marlin_format", "rotation")
        values.one_of("pack_dtype", ["int32"], "int32")
        form = values.one_of("format", ["gptq", "gptq_v2"], "gptq")
        form = values.one_of("checkpoint_format", ["gptq", "gptq_v2"], form)  # transformers prefers this one
        dynamic = values.optional("dynamic", dict, {})
        for pattern in dynamic:
            if not pattern.startswith("-:"):
                raise UserError(
                    f"{values.where}: dynamic gives {shown(pattern)} settings of its own, which s1jax does not read; "
                    f"{REMEDY}."
                )
        bits = values.one_of("bits", [2, 3, 4, 8], None)
        if bits is None:
            raise UserError(f"{values.where} lacks bits; get the complete file.")
        found = cls(
            bits,
            values.positive("group_size", 128, or_all=True),
            values.optional("desc_act", bool, False),
            form == "gptq",
            tuple(pattern.removeprefix("-:") for pattern in dynamic),
            values.where,
        )
        values.ignore(_HARMLESS)
        return found

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        return f"GPTQ, {self.bits} bits, {'one scale an output' if self.group == -1 else f'groups of {self.group}'}"

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Puts the tensors of every quantised module together."""
        for module in parts.modules(".qweight"):
            if any(search(pattern, module, self.where) for pattern in self.skipped):
                raise UserError(f"{self.where}: dynamic skips {plain(module)}, whose weights are quantised; {REMEDY}.")
            self._restore(parts, module)
            drop_zero_bias(parts, module, wanted)

    def _restore(self, parts: Parts, module: str) -> None:
        words = parts.take(f"{module}.qweight", ["I32"])
        if len(words.shape) != 2 or words.shape[0] * 32 % self.bits:
            raise UserError(
                f"{words.file}: tensor {plain(words.name)} has shape {list(words.shape)}, which is not that of codes "
                f"of {self.bits} bits; get the file again."
            )
        inputs, outputs = words.shape[0] * 32 // self.bits, words.shape[1]
        group = inputs if self.group == -1 else self.group
        groups = -(-inputs // group)  # the last one may have fewer inputs
        scales = parts.take(f"{module}.scales", FLOATS, [groups, outputs])
        zeros = parts.take(f"{module}.qzeros", ["I32"], [groups, -(-outputs * self.bits // 32)])
        take = parts.take if self.act_order else parts.optional
        order = take(f"{module}.g_idx", ["I32", "I64"], [inputs])
        parts.put(
            f"{module}.weight",
            words,
            [outputs, inputs],
            lambda: self._decode(words, scales, zeros, order, group),
        )

    def _decode(self, words: Held, scales: Held, zeros: Held, order: Held | None, group: int) -> np.ndarray:
        outputs = words.shape[1]
        codes = packed.unpack(words.read().T, self.bits, words.shape[0] * 32 // self.bits)
        offsets = packed.unpack(zeros.read(), self.bits, outputs)
        if self.minus_one:
            offsets = (offsets + 1) & np.uint8((1 << self.bits) - 1)
        groups: np.ndarray | int = group
        if order is not None:
            groups = order.read()
            if groups.min() < 0 or groups.max() >= scales.shape[0]:
                raise UserError(
                    f"{order.file}: tensor {plain(order.name)} names a group outside of the {scales.shape[0]}; get the "
                    "file again."
                )
        return packed.scale_columns(codes, floats(scales).T, offsets.T.astype(np.float32), groups)


def drop_zero_bias(parts: Parts, module: str, wanted: Collection[str]) -> None:
    """Leaves out a bias of zeros that the tool gave to a module whose model has none."""
    name = f"{module}.bias"
    if name in parts.left and name not in wanted and not parts.left[name].read().any():
        parts.drop(name)
