"""Attention over whole rows, as in training: picks one of the kernels of this folder, then calls it.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from s1jax.model.attention import chunked, fused, xla
from s1jax.model.blocks import Part

_BLOCK = 512

# (q [B, T, N, H], k [B, T, K, H], v [B, T, K, H], segment_ids [B, T]) -> [B, T, N, H], as the decoder calls it:
# `attend` on one device, and what `s1jax.parallel.ops.attend` makes of it on a mesh.
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    implementation: str = "xla",
    *,
    part: Part | None = None,
) -> jax.Array:
    """Causal attention within segments.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H]; query head n uses key head n // G.
      v: [B, S, K, H].
      segment_ids: int32 [B, T]; a token sees earlier tokens of its own segment and itself.
      implementation: `xla`, einsums that materialise scores of [B, N, T / 4, S] (`xla.py`); `chunked`, memory linear
        in S on any backend (`chunked.py`); `splash` and `cudnn` (`fused.py`) and `flash` (`flash.py`) if `choose`
        allows them.
      part: which queries of a row these are; None: they are the row, S = T. Otherwise they are two runs of T / 2
        neighbours, which together see half of all keys (`s1jax.parallel.sharding.places`).

    Returns:
      [B, T, N, H] in the dtype of `q`; softmax in float32.

    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation == "cudnn":
        if part is not None:
            raise ValueError("attention implementation 'cudnn' has no part of a row; use 'flash'")
        return fused.cudnn(q, k, v, segment_ids)
    if implementation == "splash":
        return fused.splash(q, k, v, segment_ids, part)
    if implementation == "flash":
        from s1jax.model.attention import flash  # Triton's part of JAX takes half a second to import

        return flash.attend(q, k, v, segment_ids, part)
    if implementation == "chunked":
        batch, length, _, head_dim = q.shape
        # A block may not cross the border between two runs.
        block = min(_BLOCK, length) if part is None else math.gcd(_BLOCK, length // 2)
        places = jnp.arange(length) if part is None else part.own
        key_segment_ids = segment_ids if part is None else part.segment_ids
        grouped = (q * head_dim**-0.5).reshape(batch, length, k.shape[2], -1, head_dim)
        segments = (segment_ids, key_segment_ids)
        return chunked.attend(grouped, k, v, *segments, places[::block] // block, block).reshape(q.shape)
    if implementation == "xla":
        return xla.attend(q, k, v, segment_ids, part)
    known = "xla, chunked, splash, cudnn or flash"
    raise ValueError(f"attention implementation {implementation!r} is unknown; use {known}")


def choose(asked: str, platform: str, dtype: str, packed: bool, sequence: int, head_dim: int) -> tuple[str, str | None]:
    """Picks the implementation for a run.

    Args:
      asked: `auto` takes the fastest that computes the batches exactly; a name is taken if it does, and `chunked`
        otherwise.
      platform: `cpu`, `gpu` (or `cuda`) or `tpu`.
      dtype: of activations.
      packed: rows hold several segments.
      sequence: devices that share a row.
      head_dim: H.

    Returns:
      Its name for `attend`, and a sentence if it is not what was asked for.
    """
    nvidia = [
        (platform not in ("gpu", "cuda"), "runs on NVIDIA GPUs only"),
        (dtype != "bfloat16", "wants train.compute_dtype=bfloat16"),
    ]
    against = {
        "splash": [(platform != "tpu", "runs on TPU only")],
        "cudnn": [
            *nvidia,
            (packed, "knows no segments (data.batching=packed)"),
            (sequence > 1, "has no part of a row (mesh.sequence > 1)"),
            (head_dim % 8 > 0 or head_dim > 256, f"wants a head_dim of 8, 16, ..., 256, not {head_dim}"),
        ],
        "flash": nvidia,
    }
    reasons = {name: next((why for applies, why in pairs if applies), None) for name, pairs in against.items()}
    if asked == "auto":
        return next((name for name, why in reasons.items() if why is None), "chunked"), None
    why = reasons.get(asked)
    if why is None:
        return asked, None
    return "chunked", f"train.attention={asked} {why}; chunked is used instead."
