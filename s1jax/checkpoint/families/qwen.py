"""Qwen2 (which Qwen2.5 and its R1 distillations use as well) with biases, Qwen3 with norms of queries and keys."""

from __future__ import annotations

from s1jax.checkpoint.families.family import Family

QWEN2 = Family("qwen2", "Qwen2ForCausalLM", {"max_position_embeddings": 32768}, qkv_bias=True)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", {"max_position_embeddings": 32768, "head_dim": 128}, qk_norm=True)
