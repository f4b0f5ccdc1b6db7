"""Frozen weights in int8, int4, nf4, MXFP4 or FP8 with one scale for every group of inputs.

Axis letters: L layers, E experts, D inputs of a kernel in one axis, G groups of them, F outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from s1jax.errors import UserError
from s1jax.model import quant_cpu, quant_triton

Kind = Literal["int8", "int4", "nf4", "mxfp4", "fp8"]
GROUPS = (32, 64, 128)
UNPACKED = ("int8", "fp8")  # kinds with a code a byte
# Quantiles of a normal distribution, scaled to -1..1 (Dettmers et al. 2023, QLoRA; the numbers are bitsandbytes').
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
MXFP4_LEVELS = (
    *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),  # e2m1 of OCP Microscaling Formats 1.0
    *(-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
)
LEVELS: dict[str, tuple[float, ...]] = {"nf4": NF4_LEVELS, "mxfp4": MXFP4_LEVELS}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupQTensor:
    """A kernel as small codes, and scales that each belong to `group` neighbouring inputs of one output.

    A weight is code * scale with int8 codes of -127..127, int4 codes of -8..7 or fp8 codes, which are float8_e4m3fn; or
    NF4_LEVELS[code] * scale, or MXFP4_LEVELS[code] * scale. int4 (as code + 8), nf4 and mxfp4 codes are packed: byte j
    of a group holds input j in its low and input j + group / 2 in its high four bits, as GGUF's Q4_0 does. Slices along
    leading axes (layers, experts) of both arrays are such a kernel again.

    Attributes:
      codes: int8 or float8_e4m3fn [..., D, outputs...], or uint8 [..., D / 2, outputs...].
      scales: float32 or bfloat16 [..., G, outputs...]; float8_e8m0fnu, powers of two, for mxfp4.
      kind: of the codes.
      group: inputs that share a scale.
      axis: of D in `codes`, counted from the last one: -1 for an embedding, whose outputs come first.
      inputs: the axes of the kernel that D stands for, e.g. [heads, head_dim].
      on_gpu: few rows are multiplied by `s1jax.model.quant_triton`; for kernels of single layers on one NVIDIA GPU.
    """

    codes: jax.Array
    scales: jax.Array
    kind: Kind = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})
    inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    on_gpu: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        at = self.codes.ndim + self.axis
        return (*self.codes.shape[:at], *self.inputs, *self.codes.shape[at + 1 :])

    @property
    def ndim(self) -> int:
        """Number of axes of the kernel."""
        return len(self.shape)

    def integer_kernel(self) -> quant_cpu.IntegerKernel | GroupQTensor:
        """An int4 kernel of one layer as a CPU multiplies with it; other kinds have no such form."""
        if self.kind != "int4":
            return self
        groups, outputs = self.scales.shape[0], math.prod(self.scales.shape[1:])
        return quant_cpu.of_groups(
            self.codes.reshape(groups, -1, outputs), self.scales.astype(jnp.float32).reshape(groups, outputs)
        )

    def dequantize(self, dtype: DTypeLike, levels: Sequence[ArrayLike] | None = None) -> jax.Array:
        """The kernel in `dtype`; codes times scales are computed in float32. `levels`: as of `values`."""
        at = self.scales.ndim + self.axis
        lead, rest = self.scales.shape[: at + 1], self.scales.shape[at + 1 :]
        codes = self.codes.reshape(*lead, -1, *rest)
        if self.kind not in UNPACKED:
            codes = jnp.concatenate([codes & 15, codes >> 4], at + 1)
        wide = values(codes, self.kind, levels) * jnp.expand_dims(self.scales.astype(jnp.float32), at + 1)
        return wide.astype(dtype).reshape(self.shape)


def values(codes: jax.Array, kind: Kind, levels: Sequence[ArrayLike] | None = None) -> jax.Array:
    """What unpacked codes stand for before they are scaled, in float32; `levels`: those of `LEVELS`, as arrays."""
    match kind:
        case "int8" | "fp8":
            return codes.astype(jnp.float32)
        case "int4":
            return codes.astype(jnp.float32) - 8
        case "nf4" | "mxfp4":
            return _choose([jnp.asarray(level, jnp.float32) for level in levels or LEVELS[kind]], codes)


def _choose(options: list[jax.Array], codes: jax.Array) -> jax.Array:
    """options[codes] by selects: processors have no fast lookup in a table, and compilers put selects in a product."""
    bits = [(codes & (1 << bit)) != 0 for bit in range(4)]
    for bit in bits:
        options = [jnp.where(bit, odd, even) for even, odd in zip(options[::2], options[1::2], strict=True)]
    return options[0]


def quantize_groups(
    kernel: jax.Array,
    num_input_axes: int,
    kind: Kind,
    group: int,
    *,
    num_lead_axes: int = 0,
    name: str = "a kernel",
    scale_dtype: DTypeLike = jnp.float32,
) -> GroupQTensor:
    """Quantises a kernel; call it under jit.

    The scale of a group makes its weight of largest magnitude the code 127 or -127 of int8, -8 of int4 (as GGUF's
    Q4_0), the level 1 or -1 of nf4, a level of at least 4 of mxfp4, or a code of 240 to 448 of fp8. Scales are not
    quantised. Weights that were dequantised from MXFP4, or from FP8 with any scale that the group shares, are equal
    again: mxfp4's are, as every shift of a smaller level is a level, and fp8's search is in `_fp8`.

    Args:
      kernel: [lead..., inputs..., outputs...] in a floating type; an embedding [V, D] is given with V as a lead axis.
      num_input_axes: number of axes that activations are contracted over.
      kind: of the codes.
      group: number of inputs that share a scale, one of `GROUPS`; `num_input_axes` axes count as one. mxfp4 has 32.
      num_lead_axes: number of axes before the inputs (layers, experts).
      name: of the tensor, for the error.
      scale_dtype: of the scales of int8, int4 and nf4; codes are rounded for the scales as they are stored.

    Raises:
      UserError: the groups don't divide the inputs.
    """
    shape = kernel.shape
    lead, inputs = shape[:num_lead_axes], shape[num_lead_axes : num_lead_axes + num_input_axes]
    outputs, width = shape[num_lead_axes + num_input_axes :], math.prod(inputs)
    check_group(name, width, kind, group)
    grouped = kernel.astype(jnp.float32).reshape(*lead, width // group, group, *outputs)
    at = num_lead_axes + 1
    match kind:
        case "mxfp4":
            codes, scales = _mxfp4(grouped, at)
        case "fp8":
            codes, scales = _fp8(grouped, at, kernel.dtype)
        case _:
            codes, scales = _scaled_by_largest(grouped, at, kind, scale_dtype)
    if kind not in UNPACKED:
        low, high = jnp.split(codes, 2, at)
        codes = low | (high << 4)
    codes = codes.reshape(*lead, -1, *outputs)
    return GroupQTensor(codes, jnp.squeeze(scales, at), kind, group, -1 - len(outputs), inputs)


def _scaled_by_largest(grouped: jax.Array, at: int, kind: Kind, scale_dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Codes of int8, int4 or nf4, and scales with 1 in place of the axis `at` of a group's inputs."""
    largest = jnp.max(jnp.abs(grouped), at, keepdims=True)
    if kind == "int4":
        largest = jnp.where(jnp.max(grouped, at, keepdims=True) == largest, largest, -largest)
    scales = (largest / {"int8": 127, "int4": -8, "nf4": 1}[kind]).astype(scale_dtype)
    wide = scales.astype(jnp.float32)
    scaled = grouped / jnp.where(wide == 0, 1, wide)
    if kind == "int8":
        return jnp.clip(jnp.round(scaled), -127, 127).astype(jnp.int8), scales
    if kind == "int4":
        return (jnp.clip(jnp.round(scaled), -8, 7) + 8).astype(jnp.uint8), scales
    return _nearest(scaled, NF4_LEVELS), scales


def _nearest(x: jax.Array, levels: Sequence[float]) -> jax.Array:
    """uint8 numbers of the nearest of ascending levels; what is in the middle gets the lower one."""
    between = (np.array(levels[1:], np.float32) + np.array(levels[:-1], np.float32)) / 2
    return sum(((x > edge).astype(jnp.uint8) for edge in between), jnp.zeros(x.shape, jnp.uint8))


def _mxfp4(grouped: jax.Array, at: int) -> tuple[jax.Array, jax.Array]:
    """Codes and scales as `_scaled_by_largest`; the scale is the power of two with the largest weight in 4 to 8 of it.

    Powers below 2^-126 are left out, as processors may take them for 0.
    """
    largest = jnp.max(jnp.abs(grouped), at, keepdims=True)
    exponents = jax.lax.bitcast_convert_type(largest, jnp.int32) >> 23
    exponents = jnp.maximum(exponents - 2, 1).astype(jnp.uint8)
    scales = jax.lax.bitcast_convert_type(exponents, jnp.float8_e8m0fnu)
    sizes = _nearest(jnp.abs(grouped) / scales.astype(jnp.float32), MXFP4_LEVELS[:8])
    return sizes | (jnp.signbit(grouped).astype(jnp.uint8) << 3), scales


# Significands of e4m3's largest binade, 2^8: the largest weight of a group can have each of them, and a smaller code
# has the same numbers with a smaller scale.
_E4M3_TOPS = (448.0, 416.0, 384.0, 352.0, 320.0, 288.0, 256.0, 240.0)


def _fp8(grouped: jax.Array, at: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Codes and scales as `_scaled_by_largest`; the scale is that of the smallest error among all codes of the largest.

    If weights of `dtype` are rounded products of FP8 codes and one scale, one of the tries finds these codes, and with
    them all scales that give the same products: each weight bounds them from both sides. The middle is one of them, but
    for the rounding of the bounds, so its neighbours are tried as well.
    """
    size = jnp.abs(grouped)
    largest = jnp.max(size, at, keepdims=True)
    bits = jax.lax.bitcast_convert_type(size, jnp.int32)
    in_bfloat16 = jnp.dtype(dtype) == jnp.bfloat16
    half = (1 << 15) if in_bfloat16 else 0  # of a unit in bfloat16's last place
    below, above = (jax.lax.bitcast_convert_type(bits + sign * half, jnp.float32) for sign in (-1, 1))

    def attempt(best: tuple[jax.Array, jax.Array], top: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        error, scales = best
        codes = _e4m3(size, largest / top).astype(jnp.float32)
        own = jnp.where(codes > 0, codes, 1)
        least = jnp.max(jnp.where(codes > 0, below / own, 0), at, keepdims=True)
        most = jnp.min(jnp.where(codes > 0, above / own, jnp.inf), at, keepdims=True)
        middle = jax.lax.bitcast_convert_type(jnp.where(largest > 0, (least + most) / 2, 0), jnp.int32)
        for step in (0, 1, -1):
            one = jax.lax.bitcast_convert_type(jnp.maximum(middle + step, 0), jnp.float32)
            wide = jax.lax.reduce_precision(codes * one, 8, 7) if in_bfloat16 else codes * one
            off = jnp.max(jnp.abs(wide - size), at, keepdims=True)
            scales, error = jnp.where(off < error, one, scales), jnp.minimum(off, error)
        return (error, scales), None

    start = jnp.full(largest.shape, jnp.inf), jnp.zeros(largest.shape)
    (_, scales), _ = jax.lax.scan(attempt, start, jnp.array(_E4M3_TOPS, jnp.float32))
    return _e4m3(grouped, scales), scales


def _e4m3(x: jax.Array, scales: jax.Array) -> jax.Array:
    scaled = x / jnp.where(scales > 0, scales, 1)
    return jnp.clip(scaled, -448, 448).astype(jnp.float8_e4m3fn)  # which has nothing for what is larger


def for_gpu(params: Any) -> Any:
    """The tree with `on_gpu` set in all its kernels with groups."""

    def change(leaf: Any) -> Any:
        return dataclasses.replace(leaf, on_gpu=True) if isinstance(leaf, GroupQTensor) else leaf

    return jax.tree.map(change, params, is_leaf=lambda leaf: isinstance(leaf, GroupQTensor))


def check_group(name: str, width: int, kind: Kind, group: int) -> None:
    """Refuses a group that is unknown or does not divide the width."""
    if kind == "mxfp4" and group != 32:
        raise UserError(f"groups of {group} weights are not those of mxfp4, which are 32.")
    if group not in GROUPS:
        raise UserError(f"groups of {group} weights are not supported; choose one of {', '.join(map(str, GROUPS))}.")
    if width % group:
        fitting = [str(size) for size in GROUPS if width % size == 0]
        remedy = f"choose groups of {' or '.join(fitting)}" if fitting else "keep it in int8 with a scale per output"
        raise UserError(f"{name} has {width} inputs, which {kind} groups of {group} do not divide; {remedy}.")


@jax.custom_vjp
def matmul(x: jax.Array, weight: GroupQTensor) -> jax.Array:
    """[..., D] @ [D, outputs...] -> [..., F] in the dtype of `x`.

    The backward pass dequantises the kernel a second time, so that no float copy of it is kept in between. The kernel
    has no gradient: it is frozen.
    """
    rows = math.prod(x.shape[:-1])
    if weight.on_gpu and quant_triton.can_multiply(rows, weight):
        found = quant_triton.matmul(x.reshape(rows, -1), weight)
        return found.astype(x.dtype).reshape(*x.shape[:-1], -1)
    return x @ weight.dequantize(x.dtype).reshape(x.shape[-1], -1)


def _matmul_forward(x: jax.Array, weight: GroupQTensor) -> tuple[jax.Array, GroupQTensor]:
    if weight.kind not in LEVELS:
        return matmul(x, weight), weight
    # Tied together: JAX takes levels that depend on nothing for known before a loop over layers, and holds an array as
    # large as the kernel for each of them: 10 GB for Qwen2.5-7B, 20 GB for the 32B.
    tied, levels = jax.lax.optimization_barrier((weight, [jnp.float32(level) for level in LEVELS[weight.kind]]))
    return x @ tied.dequantize(x.dtype, levels).reshape(x.shape[-1], -1), weight


def _matmul_backward(weight: GroupQTensor, gradient: jax.Array) -> tuple[jax.Array, None]:
    # The barrier keeps the compiler from using the copy of the forward pass here.
    gradient, weight = jax.lax.optimization_barrier((gradient, weight))
    kernel = weight.dequantize(gradient.dtype).reshape(math.prod(weight.inputs), -1)
    return jnp.einsum("...f,df->...d", gradient, kernel), None


matmul.defvjp(_matmul_forward, _matmul_backward)
