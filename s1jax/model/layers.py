"""Layers of the decoder: RMSNorm, bias-or-not projections and SwiGLU.

Modules hold their weights in the dtype they were created with and compute in the dtype of their input; statistics are
float32. Axis letters: B batch, T length, R rows (B and T in one), D model, F mlp, H head dimension.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

_INIT_STD = 0.02  # initializer_range of the Qwen and Llama configurations


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis (Zhang & Sennrich 2019); statistics in float32.

    Args:
      x: [..., D].
      scale: [D].
      eps: added to the mean square.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * wide.astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with its learned scale."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> [..., size] in the dtype of `x`."""
        return rms_norm(x, self.scale[...], self.eps)


def columns(x: jax.Array) -> jax.Array:
    """[R, D] -> [D, R], the right operand of a product that has the weight on its left.

    With 16 rows that form reads the weight once and is about 1.7 times faster on a CPU than a product with the weight
    on the right, which packs it first (benchmarks/decode.py). The barriers here and in `rows` keep XLA from turning one
    form into the other.
    """
    return jax.lax.optimization_barrier(x.T)


def rows(y: jax.Array) -> jax.Array:
    """[D, R] -> [R, D], the way back from `columns`."""
    return jax.lax.optimization_barrier(y).T


def product(kernel: jax.Array, turned: jax.Array) -> jax.Array:
    """[F, D] @ [D, R] -> [F, R], with the weight on its left.

    XLA runs a product of one row with a matrix of up to 2**19 weights on one core of a CPU; as two products, batched,
    it has two, and takes 0.6 of the time with 512 x 512 weights. Larger ones have all cores as they are.
    """
    half, odd = divmod(kernel.shape[0], 2)
    if turned.shape[1] > 1 or odd or not 2**17 < kernel.size <= 2**19:
        return kernel @ turned
    both = jnp.broadcast_to(turned, (2, *turned.shape))  # matmul would make one product of it again
    return jax.lax.batch_matmul(kernel.reshape(2, half, -1), both).reshape(-1, 1)


class Projection(nnx.Module):
    """Linear map from the last axes of the input, `inputs`, to the axes `out`, with an optional bias over `out`.

    With `weight_first` its kernel is [prod(out), prod(inputs)], see `columns`; with `scaled` it is int8 and has a scale
    for every output, see `s1jax.model.decoder.quantize`. The two do not go together. With `apart` B and T are not put
    together: where both are split among devices, every device would compute whole rows.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        out: Sequence[int],
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        use_bias: bool = False,
        weight_first: bool = False,
        scaled: bool = False,
        apart: bool = False,
    ):
        shape = (math.prod(out), math.prod(inputs)) if weight_first else (*inputs, *out)
        self.kernel = nnx.Param(_INIT_STD * jax.random.truncated_normal(rngs.params(), -3, 3, shape, dtype))
        self.bias = nnx.Param(jnp.zeros(tuple(out), dtype)) if use_bias else None
        self.kernel_scale = nnx.Param(jnp.ones(tuple(out), jnp.float32)) if scaled else None
        self.num_in, self.out, self.weight_first, self.apart = len(inputs), tuple(out), weight_first, apart

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, *inputs] -> [B, T, *out] in the dtype of `x`."""
        kernel = self.kernel[...].astype(x.dtype)
        lead = x.shape[: x.ndim - self.num_in]
        # One matrix product over all tokens: with B and T apart, the gradient of the kernel transposes its operands
        # element by element on a CPU, which took 2 of 7 seconds of a backward pass (benchmarks/train_step.py).
        x = x.reshape(*lead, -1) if self.apart else x.reshape(math.prod(lead), -1)
        if self.kernel_scale is not None:
            y = jnp.matmul(x, kernel.reshape(x.shape[-1], -1), preferred_element_type=jnp.float32)
            y = (y * self.kernel_scale[...].reshape(-1)).astype(x.dtype)
        else:
            y = rows(product(kernel, columns(x))) if self.weight_first else x @ kernel.reshape(x.shape[-1], -1)
        y = y.reshape(*lead, *self.out)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class SwiGLU(nnx.Module):
    """Gated feed-forward layer with SiLU (Shazeer 2020); `form`: of its projections, see `Projection`."""

    def __init__(self, d_model: int, mlp_dim: int, dtype: DTypeLike, rngs: nnx.Rngs, **form: bool):
        self.gate = Projection((d_model,), (mlp_dim,), dtype, rngs, **form)
        self.up = Projection((d_model,), (mlp_dim,), dtype, rngs, **form)
        self.down = Projection((mlp_dim,), (d_model,), dtype, rngs, **form)

    def __call__(self, x: jax.Array, parts: int = 1) -> jax.Array:
        """[B, T, D] -> [B, T, D]; in `parts` of F one after the other, see `_in_parts`."""
        if parts > 1:
            kernels = (p.kernel[...].astype(x.dtype) for p in (self.gate, self.up, self.down))
            flat = x if self.down.apart else x.reshape(-1, x.shape[-1])
            return _in_parts(flat, *kernels, parts).reshape(x.shape)
        if not self.down.weight_first:
            return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
        # Columns from end to end: turning them for every projection cost a fifth of the layer. The barriers keep the
        # products apart from what surrounds them: fused with it, XLA computes them with one row in plain loops on one
        # core, and 8 layers took 13.3 instead of 7.4 ms (benchmarks/decode.py).
        apart = jax.lax.optimization_barrier
        gate, up, down = (p.kernel[...].astype(x.dtype) for p in (self.gate, self.up, self.down))
        turned = columns(x.reshape(-1, x.shape[-1]))
        return rows(down @ apart(jax.nn.silu(apart(gate @ turned)) * apart(up @ turned))).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _in_parts(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, parts: int) -> jax.Array:
    """SwiGLU of [..., D] that holds no more of its hidden width at a time than a part, forward and backward.

    Outputs and gradients of the parts are added up in float32. The barriers keep the compiler from beginning all parts
    before it ends one, and from leaving the gradients of weights for later; without them nothing was saved on a TPU.
    Hidden values are computed again in the backward pass.

    Args:
      x: [..., D].
      gate: [D, F].
      up: [D, F].
      down: [F, D].
      parts: divides F.
    """
    total: Any = None
    for gate_part, up_part, down_part in _split(gate, up, down, parts):
        if total is not None:
            x, total = jax.lax.optimization_barrier((x, total))
        total = _sum(total, (jax.nn.silu(x @ gate_part) * (x @ up_part)) @ down_part)
    return total.astype(x.dtype)


def _in_parts_forward(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, parts: int) -> tuple[Any, Any]:
    return _in_parts(x, gate, up, down, parts), (x, gate, up, down)


def _in_parts_backward(parts: int, kept: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, gates, ups, downs = kept
    total: Any = None
    of_kernels: list[Any] = []
    for gate, up, down in _split(gates, ups, downs, parts):
        if total is not None:
            x, gradient, total, of_kernels = jax.lax.optimization_barrier((x, gradient, total, of_kernels))
        hidden, pull = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, x @ gate, x @ up)
        # No weight is transposed: on a mesh it would be gathered twice, as it is and transposed.
        of_gate, of_up = pull(jnp.einsum("...d,fd->...f", gradient, down))
        total = _sum(total, jnp.einsum("...f,df->...d", of_gate, gate) + jnp.einsum("...f,df->...d", of_up, up))
        of_kernels.append((_outer(x, of_gate), _outer(x, of_up), _outer(hidden, gradient)))
    whole = (jnp.concatenate(one, axis) for one, axis in zip(zip(*of_kernels, strict=True), (1, 1, 0), strict=True))
    return total.astype(x.dtype), *whole


_in_parts.defvjp(_in_parts_forward, _in_parts_backward)


def _split(gate: jax.Array, up: jax.Array, down: jax.Array, parts: int) -> Iterable[tuple[jax.Array, ...]]:
    return zip(*(jnp.split(x, parts, axis) for x, axis in ((gate, 1), (up, 1), (down, 0))), strict=True)


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """[..., A], [..., B] -> [A, B], summed over the rest."""
    rest = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((rest, rest), ((), ())))


def _sum(total: jax.Array | None, part: jax.Array) -> jax.Array:
    part = part.astype(jnp.float32)
    return part if total is None else total + part


@jax.custom_vjp
def lookup(embedding: jax.Array, tokens: jax.Array) -> jax.Array:
    """[V, D], int32 [B, T] -> [B, T, D], the tokens' rows.

    The gradients of a row add up in float32: in bfloat16 the sum of a thousand ones is 256, and gradients of frequent
    tokens were off by a quarter (tests/training/test_step.py).
    """
    return embedding[tokens]


def _lookup_forward(embedding: jax.Array, tokens: jax.Array) -> tuple[jax.Array, Any]:
    return embedding[tokens], (embedding, tokens)


def _lookup_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    embedding, tokens = kept
    total = jnp.zeros(embedding.shape, jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
    return total.astype(embedding.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)
