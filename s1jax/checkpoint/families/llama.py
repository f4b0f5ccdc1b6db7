"""Llama 2 and 3, and the models that share their architecture, such as SmolLM2."""

from __future__ import annotations

from s1jax.checkpoint.families import rows
from s1jax.checkpoint.families.family import Family

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    rows.PLAIN,
    {"max_position_embeddings": 2048},
    interleaved_in_gguf=True,
    own_heads=True,
    whole_heads=True,
)
