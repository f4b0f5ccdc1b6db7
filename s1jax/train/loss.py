"""Cross-entropy of next-token prediction without logits of all tokens: at no time do more than one chunk's exist.

B rows, T length, C chunk length, D model, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int
) -> jax.Array:
    """Weighted sum of negative log-likelihoods.

    The softmax is in float32, the matrix products in the type of `hidden`. Under differentiation the forward pass
    computes the gradients of `hidden` and `kernel` along with each chunk's logits, so that a chunk costs three
    matrix products and the logits are never computed again.

    Args:
      hidden: [B, T, D], the decoder's output after its final norm.
      kernel: [D, V], the output projection.
      targets: [B, T] int32, the ids to predict.
      weights: [B, T] float32; 0 where nothing is learned.
      chunk: C; logits of [B, C, V] exist at one time.

    Returns:
      float32 scalar, sum over all positions of weights * -log softmax(hidden @ kernel)[targets]. It has no gradient
      with respect to `weights`.
    """
    return _scan(hidden, kernel, targets, weights, chunk, False)[0]


def _scan(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int, gradients: bool
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Returns (loss, d_hidden [B, T, D], d_kernel [D, V] float32), the latter two None without `gradients`."""
    rows, length, width = hidden.shape
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def split(x: jax.Array) -> jax.Array:  # [B, T, ...] -> [count, B, C, ...], filled up with zeros
        x = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, count, chunk, *x.shape[2:]), 1, 0)

    kernel = kernel.astype(hidden.dtype)

    def body(carry, xs):
        total, d_kernel = carry
        h, t, w = xs  # [B, C, D], [B, C], [B, C]
        logits = jnp.einsum("bcd,dv->bcv", h, kernel, preferred_element_type=jnp.float32)
        top = logits.max(-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        norm = exponentials.sum(-1, keepdims=True)
        picked = jnp.take_along_axis(logits, t[..., None], -1)
        total += jnp.sum(w * (jnp.log(norm) + top - picked)[..., 0])
        if not gradients:
            return (total, d_kernel), None
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == t[..., None]
        d_logits = (w[..., None] * (exponentials / norm - hit)).astype(h.dtype)
        d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, kernel)
        d_kernel += jnp.einsum("bcd,bcv->dv", h, d_logits, preferred_element_type=jnp.float32)
        return (total, d_kernel), d_hidden

    d_kernel = jnp.zeros(kernel.shape, jnp.float32) if gradients else None
    (total, d_kernel), d_hidden = jax.lax.scan(
        body, (jnp.float32(0), d_kernel), (split(hidden), split(targets), split(weights))
    )
    if gradients:
        d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(rows, count * chunk, width)[:, :length]
    return total, d_hidden, d_kernel


def _forward(hidden, kernel, targets, weights, chunk):
    total, d_hidden, d_kernel = _scan(hidden, kernel, targets, weights, chunk, True)
    return total, (d_hidden, d_kernel.astype(kernel.dtype))


def _backward(chunk, residuals, cotangent):
    d_hidden, d_kernel = residuals
    scale = lambda x: (cotangent * x.astype(jnp.float32)).astype(x.dtype)  # noqa: E731
    return scale(d_hidden), scale(d_kernel), None, None


cross_entropy.defvjp(_forward, _backward)
