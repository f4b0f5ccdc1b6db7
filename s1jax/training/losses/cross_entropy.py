"""Cross-entropy of next-token prediction, computed in chunks so that the logits of all tokens never exist at once.

B rows, T length, C chunk length, D model, V vocabulary; b and v are one device's share of B and V.

On a mesh the vocabulary is split along all axes but `data`. An all-to-all turns each device's part of the output
projection's width into a part of its vocabulary. The hidden states of a chunk are gathered over `fsdp` and `sequence`,
and each device computes its slice of the vocabulary for all of them. Logits take as much memory as if the tokens were
split instead, but no device ever holds the whole output projection (1.1 GB in bfloat16 for Qwen2.5-7B) or its gradient
(2.2 GB in float32). Gathering and reducing those would move 3.3 GB a step. Hidden states and their gradients move
0.23 GB per 1,024 tokens of a device if `fsdp` is 16: less up to rows of about 14,000 tokens, more for longer ones.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from s1jax.model import blocks
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import sharding

_GATHERED = mesh_lib.WIDTH  # the mesh axes over which hidden states are gathered
_TENSOR = sharding.TABLE["vocab"]
_VOCAB = (*_TENSOR, *_GATHERED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int, mesh: Mesh | None = None
) -> jax.Array:
    """Weighted sum of negative log-likelihoods.

    The softmax is in float32, the matrix products in the type of `hidden`. Under differentiation the forward pass
    computes the gradients of `hidden` and `kernel` along with each chunk's logits, so that a chunk costs three
    matrix products and no logits are computed again.

    Args:
      hidden: [B, T, D], the decoder's output after its final norm.
      kernel: [D, V], the output projection.
      targets: [B, T] int32, the ids to predict.
      weights: [B, T] float32; 0 where nothing is learned.
      chunk: C; logits of [b, C, v] exist at one time on a device.
      mesh: of `mesh_lib.make_mesh`. None: everything is on one device.

    Returns:
      float32 scalar, sum over all positions of weights * -log softmax(hidden @ kernel)[targets]. It has no gradient
      with respect to `weights`.
    """
    return _run(hidden, kernel, targets, weights, chunk, mesh, False)[0]


def batch_loss(hidden: jax.Array, kernel: jax.Array, batch: dict[str, jax.Array], chunk: int, mesh: Mesh) -> jax.Array:
    """`cross_entropy` of a batch: the loss of supervised fine-tuning, see `s1jax.training.step.Loss`."""
    return cross_entropy(hidden, kernel, batch["targets"], batch["weights"], chunk, mesh)


def _forward(hidden, kernel, targets, weights, chunk, mesh):
    total, d_hidden, d_kernel = _run(hidden, kernel, targets, weights, chunk, mesh, True)
    return total, (d_hidden, d_kernel.astype(kernel.dtype))


def _backward(chunk, mesh, residuals, cotangent):
    d_hidden, d_kernel = ((cotangent * x.astype(jnp.float32)).astype(x.dtype) for x in residuals)
    return d_hidden, d_kernel, None, None


cross_entropy.defvjp(_forward, _backward)


def _run(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunk: int,
    mesh: Mesh | None,
    gradients: bool,
) -> tuple[jax.Array, Any, Any]:
    """Returns (loss, d_hidden [B, T, D], d_kernel [D, V]), the latter two None without `gradients`."""
    kernel = kernel.astype(hidden.dtype)
    if mesh is None or mesh.size == 1:
        return _one_device(hidden, kernel, targets, weights, chunk, gradients)
    shares = mesh_lib.parts(mesh, _GATHERED)
    tokens, placed = P(mesh_lib.ROWS, mesh_lib.TOKENS), P(_GATHERED, _TENSOR)

    def device(h: jax.Array, k: jax.Array, t: jax.Array, w: jax.Array) -> tuple[jax.Array, Any, Any]:
        size = k.shape[1]
        k = jnp.pad(k, ((0, 0), (0, -size % shares)))
        # By hand: where the vocabulary is split already, the compiler makes the whole kernel on every device.
        k = jax.lax.all_to_all(k, _GATHERED, split_axis=1, concat_axis=0, tiled=True)
        of_tensor = size * jax.lax.axis_index(_TENSOR)
        columns = of_tensor + k.shape[1] * jax.lax.axis_index(_GATHERED), of_tensor + size
        total, d_hidden, d_kernel = _one_device(h, k, t, w, chunk, gradients, columns)
        others = [axis for axis in mesh_lib.ROWS if axis not in _GATHERED]
        total, d_kernel = jax.lax.psum((total, d_kernel), others)
        if gradients:
            d_kernel = d_kernel.astype(k.dtype)
            d_kernel = jax.lax.all_to_all(d_kernel, _GATHERED, split_axis=0, concat_axis=1, tiled=True)[:, :size]
        return total, d_hidden, d_kernel

    # Replication is checked by the tests: the checker would want every zero in the loop marked by hand.
    return jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(tokens, placed, tokens, tokens),
        out_specs=(P(), tokens, placed) if gradients else (P(), None, None),
        check_vma=False,
    )(hidden, kernel, targets, weights)


def _one_device(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunk: int,
    gradients: bool,
    columns: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Any, Any]:
    """`_run` on one device's tokens [b, T] and slice of the vocabulary [D, v].

    `columns`: which id the slice begins with, and from which id on it is padding; None: it is the whole vocabulary.
    """
    on_mesh = columns is not None
    first, end = columns or (0, 0)
    length = hidden.shape[1]
    chunk = min(chunk, length)
    over_slices = functools.partial(jax.lax.psum, axis_name=_VOCAB) if on_mesh else lambda x: x

    def body(carry: tuple[jax.Array, Any], xs: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, Any], Any]:
        total, d_kernel = carry
        if on_mesh:
            xs = jax.lax.all_gather(xs, _GATHERED, axis=0, tiled=True)
        h, t, w = xs  # [b', C, D], [b', C], [b', C]; b' rows from all devices along _GATHERED
        logits = jnp.einsum("bcd,dv->bcv", h, kernel, preferred_element_type=jnp.float32)
        index = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
        if on_mesh:
            index = jnp.where(index < end, index, -1)  # padding has the place of another slice's ids
            logits = jnp.where(index < 0, -jnp.inf, logits)
        hit = index == t[..., None]
        top = logits.max(-1, keepdims=True)
        if on_mesh:
            top = jax.lax.pmax(top, _VOCAB)
        exponentials = jnp.exp(logits - top)
        norm, picked = over_slices((exponentials.sum(-1, keepdims=True), _pick(logits, t, hit, on_mesh)))
        total += jnp.sum(w * (jnp.log(norm) + top - picked)[..., 0])
        if not gradients:
            return (total, None), None
        d_logits = (w[..., None] * (exponentials / norm - hit)).astype(h.dtype)
        d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, kernel)
        if on_mesh:
            d_hidden = jax.lax.psum_scatter(d_hidden, _GATHERED, scatter_dimension=0, tiled=True)
            d_hidden = jax.lax.psum(d_hidden, _TENSOR)
        d_kernel += jnp.einsum("bcd,bcv->dv", h, d_logits, preferred_element_type=jnp.float32)
        return (total, d_kernel), d_hidden

    start = (jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32) if gradients else None)
    (total, d_kernel), d_hidden = jax.lax.scan(
        body, start, tuple(blocks.split(x, chunk) for x in (hidden, targets, weights))
    )
    if gradients:
        d_hidden = blocks.join(d_hidden, length)
    return total, d_hidden, d_kernel


def _pick(logits: jax.Array, targets: jax.Array, hit: jax.Array, on_mesh: bool) -> jax.Array:
    """The targets' logits [b, C, 1]; 0 where the target is in another device's slice."""
    if not on_mesh:
        return jnp.take_along_axis(logits, targets[..., None], -1)
    return jnp.sum(jnp.where(hit, logits, 0.0), -1, keepdims=True)
