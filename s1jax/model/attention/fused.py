"""Attention kernels of accelerators, which keep scores on the chip: splash attention on TPU, cuDNN's on NVIDIA GPUs.

Axis letters: B batch, T length, N query heads, K key/value heads, H head dimension of
queries and keys, Hv that of values.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.blocks import Part

LANES = 128  # width of a TPU's registers; blocks of splash attention are multiples of it
_BLOCK = 512
_PARTS = 8


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    part: Part | None = None,
    *,
    rule: AttentionRule | None = None,
    sinks: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments by JAX's Pallas kernel for TPU; arguments as in `dispatch.attend`.

    Rows are padded to a multiple of 128, long ones of 512, with a segment of their own. Under a remat policy that saves
    the name `attention`, output and log-sum-exp are kept.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, Hv].
      segment_ids: int32 [B, T], not negative.
      part: which queries of a row these are; None: they are the row.
      rule: as in `dispatch.attend`.
      sinks: [N], as there.
      interpret: runs on any backend, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    rule, length, keys = rule_lib.or_plain(rule, q.shape[3]), q.shape[1], k.shape[1]
    places = np.arange(length)[None] if part is None else part.places
    # Blocks divide what is padded: 20,000 ids of the paper's second recipe are 157 x 128, and 157 is prime.
    unit = LANES if min(length, keys) < 8 * _BLOCK else _BLOCK
    # A padded query stands where the last one does: no row of a block may be without any key.
    places = np.pad(places, ((0, 0), (0, -length % unit)), mode="edge")
    all_keys = keys + -keys % unit
    block, key_block = (LANES * _largest_divisor(n // LANES, _BLOCK // LANES) for n in (places.shape[1], all_keys))
    count = all_keys // key_block
    # The backward kernel writes a part of the queries' gradient for every block of keys, to be added up afterwards:
    # 15 GB of parts for Qwen2.5-7B at 32k with blocks of 512. Eight of them are 1.9 GB, for 1/8 more products there.
    wide = key_block * _largest_divisor(count, count // _PARTS)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=key_block,
        block_kv_compute=key_block,
        block_q_dkv=block,
        block_kv_dkv=wide,
        block_kv_dkv_compute=key_block,
        use_fused_bwd_kernel=True,
    )
    # Made now, not traced: what is known of the mask beforehand says which blocks are left out.
    with jax.ensure_compile_time_eval():
        shape = places.size, all_keys
        mask: Any = splash_attention_mask.CausalMask(shape)
        if rule.window:
            mask = splash_attention_mask.LocalMask(shape, (rule.window - 1, 0), 0)
        mask.q_sequence = places.reshape(-1).astype(np.int32)
        kernel = splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=len(places),
            residual_checkpoint_name="attention",
            attn_logits_soft_cap=rule.softcap or None,
            interpret=interpret,
        )
    if part is not None:  # of what is known of all devices' queries, this one's: [heads, blocks, ...] and [queries]
        kernel = jax.tree.map(lambda x: _share(x, min(x.ndim - 1, 1), len(places), part.index), kernel)
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % unit), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * rule.scale, k, v)
    )  # [B, N or K, T or S, H]
    own, seen = (
        jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % unit)), constant_values=-1)
        for ids in (segment_ids, segment_ids if part is None else part.segment_ids)
    )
    segments = splash_attention_kernel.SegmentIds(own, seen)
    of_row = functools.partial(kernel, sinks=None if sinks is None else sinks.astype(jnp.float32))
    out = jax.vmap(of_row)(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype)


def _share(x: jax.Array, axis: int, shares: int, index: jax.Array) -> jax.Array:
    """One of equal parts of an array."""
    size = x.shape[axis] // shares
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _largest_divisor(number: int, most: int) -> int:
    """Of `number`, no larger than `most`; 1 where that is 0."""
    return next((size for size in range(min(number, most), 1, -1) if number % size == 0), 1)


def cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, rule: AttentionRule | None = None
) -> jax.Array:
    """Causal attention in rows of one segment, padded on the right, by cuDNN: bfloat16 or float16 on NVIDIA GPUs.

    What it gives for padding means nothing. Args are those of `splash`; it has no softcap.
    """
    rule = rule_lib.or_plain(rule, q.shape[-1])
    window = (rule.window - 1, 0) if rule.window else None
    lengths = jnp.maximum(1, jnp.sum(segment_ids > 0, axis=1, dtype=jnp.int32))  # [B]
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn",
        scale=rule.scale, local_window_size=window,
    )  # fmt: skip
