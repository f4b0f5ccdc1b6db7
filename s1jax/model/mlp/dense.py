"""The gated MLP of a dense layer, whole or chunk by chunk.

Axis letters: B batch, T length, R rows (B and T in one), D model, F hidden width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from s1jax.model.layouts import TransposedKernel
from s1jax.model.linear import Projection, apply_all, transpose_in, transpose_out

# Of the gate, by `Dense.activation`.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
_Three = tuple[jax.Array, jax.Array, jax.Array]


class SwiGLU(nnx.Module):
    """Gated feed-forward layer (Shazeer 2020), with SiLU of the gate or another of `ACTIVATIONS`."""

    def __init__(self, d_model: int, hidden: int, dtype: DTypeLike, rngs: nnx.Rngs, activation: str = "silu"):
        self.activation = activation
        self.gate = Projection((d_model,), (hidden,), dtype, rngs)
        self.up = Projection((d_model,), (hidden,), dtype, rngs)
        self.down = Projection((hidden,), (d_model,), dtype, rngs)

    def __call__(self, x: jax.Array, mlp_chunks: int = 1, merge_batch_and_seq: bool = True) -> jax.Array:
        """Applies the layer.

        Args:
          x: [B, T, D].
          mlp_chunks: chunks of F that are computed one after the other, see `_chunked`; a divisor of F. More than one
            needs kernels that are plain arrays.
          merge_batch_and_seq: see `s1jax.model.linear.Projection`.

        Returns:
          [B, T, D] in the dtype of `x`.

        Raises:
          ValueError: for several chunks of other kernels than plain arrays.
        """
        weights = self.gate.weight(), self.up.weight(), self.down.weight()
        if mlp_chunks > 1:
            kernels = [weight.astype(x.dtype) for weight in weights if isinstance(weight, jax.Array)]
            if len(kernels) < len(weights):
                kinds = ", ".join(type(weight).__name__ for weight in weights if not isinstance(weight, jax.Array))
                raise ValueError(f"mlp_chunks is {mlp_chunks}, and an MLP with {kinds} kernels is computed whole")
            flat = x.reshape(-1, x.shape[-1]) if merge_batch_and_seq else x
            return _chunked(flat, *kernels, mlp_chunks, self.activation).reshape(x.shape)
        gate, up, down = weights
        if (
            isinstance(gate, TransposedKernel)
            and isinstance(up, TransposedKernel)
            and isinstance(down, TransposedKernel)
        ):
            return _transposed(x, gate, up, down, self.activation)
        products = apply_all((self.gate, self.up), x, merge_batch_and_seq)
        opened, raised = (checkpoint_name(one, "mlp") for one in products)
        hidden = ACTIVATIONS[self.activation](opened) * raised
        return self.down(hidden, merge_batch_and_seq)


def _transposed(
    x: jax.Array, gate: TransposedKernel, up: TransposedKernel, down: TransposedKernel, activation: str
) -> jax.Array:
    """The layer on [B, T, D], transposed from end to end: transposing for every projection cost a fifth of it.

    The barriers keep the products out of the fusions around them. In a fusion, XLA computes a product of one row in
    plain loops on one core, and 8 layers took 13.3 instead of 7.4 ms (benchmarks/decode.py).
    """
    barrier = jax.lax.optimization_barrier
    gate_kernel, up_kernel, down_kernel = (kernel.matrix.astype(x.dtype) for kernel in (gate, up, down))
    x_t = transpose_in(x.reshape(-1, x.shape[-1]))
    hidden = barrier(ACTIVATIONS[activation](barrier(gate_kernel @ x_t)) * barrier(up_kernel @ x_t))
    return transpose_out(down_kernel @ hidden).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, chunks: int, activation: str) -> jax.Array:
    """The layer on [..., D] that holds one chunk of its hidden width at a time, forward and backward.

    Outputs and gradients of the chunks are added up in float32. The barriers keep the compiler from starting all chunks
    before it ends one, and from leaving the gradients of weights for later; without them nothing was saved on a TPU.
    The backward pass computes the hidden values again.

    Args:
      x: [..., D].
      gate: [D, F].
      up: [D, F].
      down: [F, D].
      chunks: divides F.
      activation: of `ACTIVATIONS`.
    """
    total: jax.Array | None = None
    for gate_chunk, up_chunk, down_chunk in _split(gate, up, down, chunks):
        if total is not None:
            x, total = jax.lax.optimization_barrier((x, total))
        total = _add(total, (ACTIVATIONS[activation](x @ gate_chunk) * (x @ up_chunk)) @ down_chunk)
    assert total is not None
    return total.astype(x.dtype)


_Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _chunked_forward(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, chunks: int, activation: str
) -> tuple[jax.Array, _Kept]:
    return _chunked(x, gate, up, down, chunks, activation), (x, gate, up, down)


def _chunked_backward(chunks: int, activation: str, kept: _Kept, gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, gates, ups, downs = kept
    total: jax.Array | None = None
    of_kernels: list[_Three] = []
    for gate, up, down in _split(gates, ups, downs, chunks):
        if total is not None:
            x, gradient, total, of_kernels = jax.lax.optimization_barrier((x, gradient, total, of_kernels))
        hidden, pull = jax.vjp(lambda gate, up: ACTIVATIONS[activation](gate) * up, x @ gate, x @ up)
        # Weights are not transposed: a mesh would gather each of them twice, once transposed.
        of_gate, of_up = pull(jnp.einsum("...d,fd->...f", gradient, down))
        total = _add(total, jnp.einsum("...f,df->...d", of_gate, gate) + jnp.einsum("...f,df->...d", of_up, up))
        of_kernels.append((_outer(x, of_gate), _outer(x, of_up), _outer(hidden, gradient)))
    assert total is not None
    whole = (jnp.concatenate(one, axis) for one, axis in zip(zip(*of_kernels, strict=True), (1, 1, 0), strict=True))
    return total.astype(x.dtype), *whole


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _split(gate: jax.Array, up: jax.Array, down: jax.Array, chunks: int) -> Iterable[_Three]:
    return zip(*(jnp.split(x, chunks, axis) for x, axis in ((gate, 1), (up, 1), (down, 0))), strict=True)


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """[..., A], [..., B] -> [A, B], summed over the rest."""
    rest = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((rest, rest), ((), ())))


def _add(total: jax.Array | None, chunk: jax.Array) -> jax.Array:
    chunk = chunk.astype(jnp.float32)
    return chunk if total is None else total + chunk
