"""Products of few rows with weights of groups on an NVIDIA GPU.

XLA writes weights with scales of groups to memory in bfloat16 before a product: six times the traffic of 4-bit weights.
This kernel multiplies with the codes of a group and then with its scales. It was compiled for an H100 and ran in
Pallas' interpreter only.

Axis letters: R rows, D inputs, F outputs, G groups of inputs, S shares of the groups.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

if TYPE_CHECKING:
    from s1jax.model.quant_groups import GroupQTensor

MAX_ROWS = 64  # with more, the copy that XLA writes is read often enough to pay
_SMALLEST = 16  # of a side of a product
_OUTPUTS = 128  # of one program, at most
_PROGRAMS = 256  # of one call: about two for each of an H100's 132 processors; each writes sums of its groups


def can_multiply(rows: int, weight: GroupQTensor) -> bool:
    """Whether the kernel takes the product: few rows, outputs in blocks of at least 16, any codes but int8."""
    return weight.kind != "int8" and rows <= MAX_ROWS and math.gcd(_outputs(weight), _OUTPUTS) >= _SMALLEST


def matmul(x: jax.Array, weight: GroupQTensor, interpret: bool = False) -> jax.Array:
    """[R, D] @ a kernel that `can_multiply` says yes to -> float32 [R, F].

    Args:
      x: [R, D] in bfloat16, or in float32 whose products Triton rounds to TF32.
      weight: of one layer.
      interpret: runs on any backend, slowly, for tests.
    """
    rows, groups, outputs = x.shape[0], x.shape[1] // weight.group, _outputs(weight)
    parts = 1 if weight.kind == "fp8" else 2  # inputs of a byte
    part, block = weight.group // parts, math.gcd(outputs, _OUTPUTS)
    padded = max(_SMALLEST, pl.next_power_of_2(rows))
    split = jnp.pad(x, ((0, padded - rows), (0, 0))).reshape(padded, groups, parts, part).transpose(1, 2, 0, 3)
    scales = weight.scales.reshape(groups, outputs)
    if weight.kind == "mxfp4":  # Triton has no such type; bfloat16 has its numbers
        scales = scales.astype(jnp.bfloat16)
    shares = min(groups, max(1, _PROGRAMS // (outputs // block)))
    partial = pl.pallas_call(
        functools.partial(_kernel, kind=weight.kind, groups=groups, shares=shares),
        name="group_matmul",
        grid=(outputs // block, shares),
        in_specs=[
            pl.BlockSpec((groups, parts, padded, part), lambda f, s: (0, 0, 0, 0)),
            pl.BlockSpec((groups, part, block), lambda f, s: (0, 0, f)),
            pl.BlockSpec((groups, block), lambda f, s: (0, f)),
        ],
        out_specs=pl.BlockSpec((None, padded, block), lambda f, s: (s, 0, f)),
        out_shape=jax.ShapeDtypeStruct((shares, padded, outputs), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
    )(split, weight.codes.reshape(groups, part, outputs), scales)
    return jnp.sum(partial, 0)[:rows]


def _outputs(weight: GroupQTensor) -> int:
    return math.prod(weight.scales.shape[weight.scales.ndim + weight.axis + 1 :])


def _kernel(x_ref, codes_ref, scales_ref, out_ref, *, kind, groups, shares):  # type: ignore[no-untyped-def]
    """All rows and a block of outputs [R, F] over one share of the groups."""
    from s1jax.model.quant_groups import values

    share = pl.program_id(1)

    def add(group: jax.Array, total: jax.Array) -> jax.Array:
        codes = codes_ref[group, :, :]
        parts = (codes,) if kind == "fp8" else (codes & 15, codes >> 4)
        product = sum(
            triton.dot(x_ref[group, i, :, :], values(part, kind).astype(x_ref.dtype)) for i, part in enumerate(parts)
        )
        return total + product * scales_ref[group, :].astype(jnp.float32)[None]

    bounds = groups * share // shares, groups * (share + 1) // shares
    out_ref[...] = jax.lax.fori_loop(*bounds, add, jnp.zeros(out_ref.shape, jnp.float32))
