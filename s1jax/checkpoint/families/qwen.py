"""Qwen2 (which Qwen2.5 and its R1 distillations use as well) with biases, Qwen3 with norms of queries and keys."""

from __future__ import annotations

from s1jax.checkpoint.families import rows
from s1jax.checkpoint.families.family import Family

_WINDOWS = frozenset({"sliding_window", "max_window_layers"})  # of use_sliding_window, which must be off

QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    rows.PLAIN,
    {"max_position_embeddings": 32768},
    harmless=_WINDOWS,
    qkv_bias=True,
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    rows.PLAIN,
    {"max_position_embeddings": 32768, "head_dim": 128},
    harmless=_WINDOWS,
    qk_norm=True,
)
