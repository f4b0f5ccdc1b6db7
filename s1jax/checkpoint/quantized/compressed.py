"""Weights as compressed-tensors stores them (vLLM's llm-compressor): integers and floats of 4 or 8 bits.

`config_groups` say which modules are quantised and how. Parts of a module, by format:
- pack-quantized: `weight_packed` int32 (codes + 2^(bits - 1) along the inputs), `weight_scale`, `weight_shape`, and
  `weight_zero_point` packed along the outputs.
- int-quantized, float-quantized, naive-quantized: `weight` int8 or float8_e4m3fn, `weight_scale`, `weight_zero_point`.
- mxfp8-quantized: `weight` float8_e4m3fn, `weight_scale` uint8 exponents.
- nvfp4-pack-quantized, mxfp4-pack-quantized: `weight_packed` uint8 (two e2m1 numbers a byte), `weight_scale` in
  float8_e4m3fn, divided by `weight_global_scale`, or uint8 exponents.
A weight is (code - zero) * scale. Source: compressed-tensors' compressors/ and quantization/.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from s1jax.checkpoint.codecs import mxfp4, packed
from s1jax.checkpoint.quantized.gptq import FLOATS
from s1jax.checkpoint.quantized.held import Held, Parts, floats
from s1jax.checkpoint.quantized.settings import REMEDY, Settings, search
from s1jax.config.schema import plain, shown
from s1jax.errors import UserError

_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized",
)  # fmt: skip
_TYPES = ("Linear", "Embedding")  # of modules that are quantised


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How the modules of one group are quantised.

    Attributes:
      targets: names, "re:" and a regular expression, or types of modules.
      form: of `_FORMATS`.
      bits: of a code.
      kind: int or float.
      symmetric: codes have no zero points.
      strategy: tensor, channel, group, tensor_group or block: what shares a scale.
      group: inputs that share a scale.
      block: outputs and inputs that share a scale.
    """

    targets: tuple[str, ...]
    form: str
    bits: int
    kind: str
    symmetric: bool
    strategy: str
    group: int
    block: tuple[int, int]

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        shared = {"group": f"groups of {self.group}", "tensor_group": f"groups of {self.group}"}
        shared |= {"block": "blocks of {} x {}".format(*self.block), "channel": "one scale an output"}
        return f"{self.form}, {self.kind} of {self.bits} bits, {shared.get(self.strategy, 'one scale a tensor')}"

    def width(self, inputs: int) -> int:
        """Inputs that share a scale."""
        return {"group": self.group, "tensor_group": self.group, "block": self.block[1]}.get(self.strategy, inputs)

    def scale_shapes(self, outputs: int, inputs: int) -> list[tuple[int, ...]]:
        """Shapes that the scales of a matrix may have."""
        if self.strategy == "tensor":
            return [(), (1,), (1, 1)]
        if self.strategy == "channel":
            return [(outputs, 1), (outputs,)]
        if self.strategy == "block":
            return [(math.ceil(outputs / self.block[0]), math.ceil(inputs / self.block[1]))]
        return [(outputs, inputs // self.group)]

    def spread(self, values: np.ndarray, outputs: int) -> np.ndarray:
        """Scales or zeros as they are stored -> [outputs or 1, groups of inputs]."""
        if self.strategy in ("tensor", "channel"):
            return values.reshape(-1, 1)
        return packed.repeat_rows(values, self.block[0], outputs) if self.strategy == "block" else values


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Weights quantised by compressed-tensors.

    Attributes:
      schemes: of the groups.
      skipped: as `Scheme.targets`, modules that are not quantised.
      where: name of the configuration in errors.
    """

    schemes: tuple[Scheme, ...]
    skipped: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, values: Settings) -> Compressed:
        """Reads a `quantization_config`."""
        if values.optional("sparsity_config", dict, {}).get("format") != "dense":
            values.empty("sparsity_config")
        if values.optional("transform_config", dict, {}).get("config_groups", True):
            values.empty("transform_config")
        values.empty("moe_sparsity_config")
        values.one_of("quantization_status", ["compressed", "frozen"], "compressed")  # frozen: by older versions
        form = values.one_of("format", [*_FORMATS, "mixed-precision"], "mixed-precision")
        groups = values.get("config_groups", dict)
        schemes = [
            _scheme(group, f"{values.where}: config_groups.{plain(name)}", form)
            for name, group in groups.items()
            if not (isinstance(group, dict) and group.get("weights", 0) is None)  # of activations alone
        ]
        skipped = values.words("ignore")
        values.ignore("quant_method version global_compression_ratio kv_cache_scheme run_compressed dequantize")
        return cls(tuple(schemes), skipped, values.where)

    @property
    def about(self) -> str:
        """What the weights are, in words."""
        return "compressed-tensors, " + " and ".join(scheme.about for scheme in self.schemes)

    def restore(self, parts: Parts, wanted: Collection[str]) -> None:
        """Puts the tensors of every quantised module together; scales of activations are left out."""
        for module in sorted({*parts.modules(".weight_packed"), *parts.modules(".weight_scale")}):
            if _named(module, self.skipped, self.where):
                raise UserError(f"{self.where}: ignore names {plain(module)}, whose weights are quantised; {REMEDY}.")
            _restore(parts, module, self._scheme_of(module))
        parts.drop_scales_of_activations()

    def _scheme_of(self, module: str) -> Scheme:
        """Of a module: names go before regular expressions, and those before types, as in compressed-tensors."""
        for kinds in (lambda t: t not in _TYPES and t[:3] != "re:", lambda t: t[:3] == "re:", lambda t: t in _TYPES):
            for scheme in self.schemes:
                if _named(module, [target for target in scheme.targets if kinds(target)], self.where):
                    return scheme
        raise UserError(f"{self.where}: no group names {plain(module)}, whose weights are quantised; {REMEDY}.")


def _named(module: str, targets: Sequence[str], where: str) -> bool:
    """Whether targets name a module; every quantised module but the embedding is a linear one."""
    kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
    return any(
        search(target.removeprefix("re:"), module, where) if target.startswith("re:") else target in (module, kind)
        for target in targets
    )


def _scheme(group: Any, where: str, form: str) -> Scheme:
    """Reads one of `config_groups`."""
    if not isinstance(group, dict):
        raise UserError(f"{where} is {shown(group)}, not the settings of a group; {REMEDY}.")
    values = Settings(group, where)
    targets = values.words("targets")
    form = values.one_of("format", _FORMATS, form)
    if form not in _FORMATS:
        raise UserError(f"{where} lacks format, which mixed-precision asks of every group; get the complete file.")
    inner = Settings(values.get("weights", dict), f"{where}.weights")
    values.ignore("input_activations output_activations")
    kind, bits = inner.one_of("type", ["int", "float"], "int"), inner.positive("num_bits", 8)
    group_size = inner.optional("group_size", int, 0)
    silent = "group" if group_size > 0 else "channel" if group_size == -1 else "tensor"
    strategy = inner.one_of("strategy", ["tensor", "channel", "group", "tensor_group", "block"], silent)
    block = inner.block("block_structure") or (0, 0)
    scheme = Scheme(targets, form, bits, kind, inner.optional("symmetric", bool, True), strategy, group_size, block)
    inner.ignore("observer observer_kwargs dynamic actorder scale_dtype zp_dtype")
    _check(scheme, inner.where)
    return scheme


def _check(scheme: Scheme, where: str) -> None:
    """Raises UserError unless such weights exist."""
    known = {
        "pack-quantized": ("int", (2, 4, 8)), "int-quantized": ("int", (8,)), "float-quantized": ("float", (8,)),
        "naive-quantized": (scheme.kind, (8,)), "mxfp8-quantized": ("float", (8,)),
        "nvfp4-pack-quantized": ("float", (4,)), "mxfp4-pack-quantized": ("float", (4,)),
    }  # fmt: skip
    kind, bits = known[scheme.form]
    if scheme.kind != kind or scheme.bits not in bits:
        raise UserError(
            f"{where}: s1jax reads {scheme.form} of type {kind} with {' or '.join(map(str, bits))} bits, not "
            f"{scheme.kind} with {scheme.bits}; {REMEDY}."
        )
    if scheme.kind == "float" and not scheme.symmetric:
        raise UserError(f"{where}: symmetric is false for floats, which s1jax does not read; {REMEDY}.")
    grouped = scheme.strategy in ("group", "tensor_group")
    if (grouped and scheme.group < 1) or (scheme.strategy == "block" and not min(scheme.block) > 0):
        raise UserError(f"{where}: strategy {scheme.strategy} has no size of a group; get the complete file.")
    size = {"nvfp4-pack-quantized": 16, "mxfp4-pack-quantized": 32, "mxfp8-quantized": 32}.get(scheme.form)
    if size and not (grouped and scheme.group == size):
        raise UserError(f"{where}: {scheme.form} has groups of {size}, not {scheme.group}; get the file again.")


def _restore(parts: Parts, module: str, scheme: Scheme) -> None:
    """Puts the tensors of one module together."""
    shape: tuple[int, ...]
    if scheme.form == "pack-quantized":
        stored = parts.take(f"{module}.weight_shape", ["I64", "I32"], [2])
        shape = tuple(map(int, stored.read()))
        if min(shape) < 1:
            raise UserError(f"{stored.file}: tensor {plain(stored.name)} is {list(shape)}; get the file again.")
        width = math.ceil(shape[1] * scheme.bits / 32)
        codes = parts.take(f"{module}.weight_packed", ["I32"], [shape[0], width])
    elif scheme.form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        codes = parts.take(f"{module}.weight_packed", ["U8"])
        shape = (*codes.shape[:-1], *(size * 2 for size in codes.shape[-1:]))
    else:
        codes = parts.take(f"{module}.weight", ["I8" if scheme.kind == "int" else "F8_E4M3"])
        shape = codes.shape
    if len(shape) != 2:
        raise UserError(f"{codes.file}: tensor {plain(codes.name)} is not a matrix; get the file again.")
    outputs, inputs = shape
    width = scheme.width(inputs)
    if scheme.strategy != "block" and inputs % width:
        raise UserError(
            f"{codes.file}: {plain(module)} has {inputs} inputs, which groups of {width} do not divide; "
            "quantization_config does not describe it, so get the file again."
        )
    scale, whole = _take_scales(parts, module, scheme, outputs, inputs)
    zero = _take_zeros(parts, module, scheme, scale, outputs)
    order = parts.optional(f"{module}.weight_g_idx", ["I32", "I64"], [inputs])

    def read() -> np.ndarray:
        zeros = None if zero is None else scheme.spread(_zeros(zero, scheme, outputs), outputs)
        by_column: np.ndarray | int = width
        if order is not None and scheme.strategy == "group":
            found = order.read()
            if found.max() >= inputs // width:
                raise UserError(
                    f"{order.file}: tensor {plain(order.name)} names a group that is not there; get it again."
                )
            by_column = width if found.min() < 0 else found  # -1: the inputs are in their order
        scales = scheme.spread(_scales(scale, whole), outputs)
        return packed.scale_columns(_codes(codes, scheme, inputs), scales, zeros, by_column)

    parts.put(f"{module}.weight", codes, shape, read)


def _take_scales(parts: Parts, module: str, scheme: Scheme, outputs: int, inputs: int) -> tuple[Held, Held | None]:
    """Scales, and the scale of scales where there is one."""
    name = f"{module}.weight_scale"
    kinds: Sequence[str] = FLOATS
    if scheme.form == "nvfp4-pack-quantized":
        kinds = ["F8_E4M3"]
    elif scheme.form.startswith("mx"):
        kinds = ["U8"]
    allowed = scheme.scale_shapes(outputs, inputs)
    stored = parts.left.get(name)
    scale = parts.take(name, kinds, stored.shape if stored and stored.shape in allowed else allowed[0])
    if scheme.form != "nvfp4-pack-quantized":
        return scale, None
    whole = parts.take(f"{module}.weight_global_scale", ["F32"])
    if math.prod(whole.shape) != 1:
        raise UserError(f"{whole.file}: tensor {plain(whole.name)} is not one number; get the file again.")
    return scale, whole


def _take_zeros(parts: Parts, module: str, scheme: Scheme, scale: Held, outputs: int) -> Held | None:
    """Zeros of asymmetric weights; those that older versions store with symmetric ones must be 0."""
    name = f"{module}.weight_zero_point"
    if scheme.symmetric:
        found = parts.left.get(name)
        if found is not None and found.read().any():
            raise UserError(
                f"{found.file}: tensor {plain(name)} is not 0 although weights are symmetric; get it again."
            )
        parts.drop(name)
        return None
    if scheme.form == "pack-quantized" and parts.left.get(name) and parts.left[name].kind == "I32":
        if scheme.strategy not in ("channel", "group"):
            raise UserError(f"{parts.left[name].file}: {plain(name)} is packed for {scheme.strategy}; {REMEDY}.")
        return parts.take(name, ["I32"], [math.ceil(outputs * scheme.bits / 32), scale.shape[-1]])
    return parts.take(name, ["I8"], scale.shape)


def _scales(scale: Held, whole: Held | None) -> np.ndarray:
    if scale.kind == "U8":
        return mxfp4.scales(scale.read())
    if whole is not None:
        return packed.decode_e4m3(scale.read()) / floats(whole)
    return floats(scale)


def _zeros(zero: Held, scheme: Scheme, outputs: int) -> np.ndarray:
    if zero.kind == "I8":
        return floats(zero)
    codes = packed.unpack(zero.read().T, scheme.bits, outputs).T
    return codes.astype(np.float32) - np.float32(1 << (scheme.bits - 1))


def _codes(codes: Held, scheme: Scheme, inputs: int) -> np.ndarray:
    if scheme.form == "pack-quantized":
        return packed.unpack(codes.read(), scheme.bits, inputs).astype(np.int16) - np.int16(1 << (scheme.bits - 1))
    if codes.kind == "U8":
        return mxfp4.from_pairs(codes.read())
    return packed.decode_e4m3(codes.read()) if codes.kind == "F8_E4M3" else codes.read()
