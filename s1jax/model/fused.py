"""Attention kernels of accelerators, which keep scores on the chip: splash attention on TPU, cuDNN's on NVIDIA GPUs.

Axis letters: B batch, T length, N query heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LANES = 128  # blocks of splash attention are multiples of it
_BLOCK = 512
_PARTS = 8


def splash(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, interpret: bool = False) -> jax.Array:
    """Causal attention within segments by JAX's Pallas kernel for TPU; arguments of `s1jax.model.attention.attend`.

    Rows are padded to a multiple of 128 with a segment of their own. Under a remat policy that saves the name
    `attention`, output and log-sum-exp are kept.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      segment_ids: int32 [B, T], not negative.
      interpret: runs on any backend, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    _, length, heads, head_dim = q.shape
    extra = -length % _LANES
    lanes = (length + extra) // _LANES
    block = _LANES * _largest_divisor(lanes, _BLOCK // _LANES)
    count = (length + extra) // block
    # The backward kernel writes a part of the queries' gradient for every block of keys, to be added up afterwards:
    # 15 GB of parts for Qwen2.5-7B at 32k with blocks of 512. Eight of them are 1.9 GB, for 1/8 more products there.
    wide = block * _largest_divisor(count, count // _PARTS)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=wide,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    # Made now, not traced: what is known of the mask beforehand says which blocks are left out.
    with jax.ensure_compile_time_eval():
        mask = splash_attention_mask.CausalMask((length + extra, length + extra))
        kernel = splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attention",
            interpret=interpret,
        )
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v)
    )  # [B, N or K, T, H]
    segments = jnp.pad(segment_ids, ((0, 0), (0, extra)), constant_values=-1)
    out = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash_attention_kernel.SegmentIds(s, s)))(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype)


def _largest_divisor(number: int, most: int) -> int:
    """Of `number`, no larger than `most`; 1 where that is 0."""
    return next((size for size in range(min(number, most), 1, -1) if number % size == 0), 1)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Causal attention in rows of one segment, padded on the right, by cuDNN: bfloat16 or float16 on NVIDIA GPUs.

    What it gives for padding means nothing. Args are those of `splash`.
    """
    lengths = jnp.maximum(1, jnp.sum(segment_ids > 0, axis=1, dtype=jnp.int32))  # [B]
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
