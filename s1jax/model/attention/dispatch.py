"""Attention over whole rows, as in training: picks one of the kernels of this folder, then calls it.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension of
queries and keys, Hv that of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.model.attention import chunked, fused, xla
from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.blocks import Part

WINDOW = "window_"  # and the number: the scope of a layer's operations; `s1jax.plan.flops` reads it there
_BLOCK = 512
_SMALLEST_BLOCK = 128  # of layers with a window: two blocks in a window leave out most keys that no query sees

# (q [B, T, N, H], k [B, T, K, H], v [B, T, K, Hv], segment_ids [B, T], *, rule, sinks) -> [B, T, N, Hv], as the decoder
# calls it: `attend` on one device, and what `s1jax.parallel.ops.attend` makes of it on a mesh.
Attend = Callable[..., jax.Array]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    implementation: str = "xla",
    *,
    part: Part | None = None,
    rule: AttentionRule | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Causal attention within segments.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H]; query head n uses key head n // G.
      v: [B, S, K, Hv].
      segment_ids: int32 [B, T]; a token sees earlier tokens of its own segment and itself.
      implementation: `xla`, einsums that materialise scores of [B, N, T / 4, S] (`xla.py`); `chunked`, memory linear
        in S on any backend (`chunked.py`); `splash` and `cudnn` (`fused.py`) and `flash` (`flash.py`) if `choose`
        allows them.
      part: which queries of a row these are; None: they are the row, S = T. Otherwise they are two runs of T / 2
        neighbours, which together see half of all keys (`s1jax.parallel.sharding.places`).
      rule: scale, window and softcap of scores; None: scores are multiplied by H**-0.5.
      sinks: [N], a logit of each query head that takes part in the softmax and is dropped; None: there are none.

    Returns:
      [B, T, N, Hv] in the dtype of `q`; softmax in float32.

    Raises:
      ValueError: for an unknown implementation.
    """
    rule = rule_lib.or_plain(rule, q.shape[-1])
    if rule.window:
        with jax.named_scope(f"{WINDOW}{rule.window}"):
            return _attend(q, k, v, segment_ids, implementation, part, rule, sinks)
    return _attend(q, k, v, segment_ids, implementation, part, rule, sinks)


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    implementation: str,
    part: Part | None,
    rule: AttentionRule,
    sinks: jax.Array | None,
) -> jax.Array:
    if implementation == "cudnn":
        if part is not None or rule.softcap or sinks is not None:
            raise ValueError("attention implementation 'cudnn' has no part of a row, softcap or sinks; use 'flash'")
        return fused.cudnn(q, k, v, segment_ids, rule=rule)
    if implementation == "splash":
        return fused.splash(q, k, v, segment_ids, part, rule=rule, sinks=sinks)
    if implementation == "flash":
        from s1jax.model.attention import flash  # Triton's part of JAX takes half a second to import

        return flash.attend(q, k, v, segment_ids, part, rule=rule, sinks=sinks)
    if implementation == "chunked":
        return _chunked(q, k, v, segment_ids, part, rule, sinks)
    if implementation == "xla":
        return xla.attend(q, k, v, segment_ids, part, rule=rule, sinks=sinks)
    known = "xla, chunked, splash, cudnn or flash"
    raise ValueError(f"attention implementation {implementation!r} is unknown; use {known}")


def _chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    part: Part | None,
    rule: AttentionRule,
    sinks: jax.Array | None,
) -> jax.Array:
    """`attend` by `chunked.attend`."""
    batch, length, heads, head_dim = q.shape
    most = _BLOCK if not rule.window else min(_BLOCK, max(_SMALLEST_BLOCK, rule.window // 2))
    # A block may not cross the border between two runs.
    block = min(most, length) if part is None else math.gcd(most, length // 2)
    places = jnp.arange(length) if part is None else part.own
    key_segment_ids = segment_ids if part is None else part.segment_ids
    tables = np.arange(length)[None] if part is None else part.places
    pairs = chunked.count_pairs(tables[:, ::block] // block, block, rule.window)
    grouped = (q * rule.scale).reshape(batch, length, k.shape[2], -1, head_dim)
    out = chunked.attend(
        grouped,
        k,
        v,
        segment_ids,
        key_segment_ids,
        places[::block] // block,
        None if sinks is None else sinks.astype(jnp.float32).reshape(k.shape[2], -1),
        chunked.Shape(block, pairs, rule.window, rule.softcap),
    )
    return out.reshape(batch, length, heads, v.shape[-1])


def choose(
    asked: str,
    platform: str,
    dtype: str,
    packed: bool,
    sequence: int,
    head_dim: int,
    needs: Collection[str] = (),
) -> tuple[str, str | None]:
    """Picks the implementation for a run.

    Args:
      asked: `auto` takes the fastest that computes the batches exactly; a name is taken if it does, and `chunked`
        otherwise.
      platform: `cpu`, `gpu` (or `cuda`) or `tpu`.
      dtype: of activations.
      packed: rows hold several segments.
      sequence: devices that share a row.
      head_dim: H.
      needs: what the layers ask of a kernel, see `s1jax.model.attention.rule.needs`.

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
            *((need in needs, f"computes no {need}") for need in ("softcaps", "sinks", "narrow values")),
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
