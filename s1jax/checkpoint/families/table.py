"""All families by their `model_type`."""

from __future__ import annotations

from typing import NamedTuple

from s1jax.checkpoint.families import rows as rows_lib
from s1jax.checkpoint.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from s1jax.checkpoint.families.family import Family
from s1jax.checkpoint.families.gemma import GEMMA2, GEMMA3_TEXT
from s1jax.checkpoint.families.gpt_oss import GPT_OSS
from s1jax.checkpoint.families.llama import LLAMA
from s1jax.checkpoint.families.mistral import MINISTRAL3, MISTRAL, MIXTRAL
from s1jax.checkpoint.families.olmo import OLMO2, OLMO3
from s1jax.checkpoint.families.phi import PHI3
from s1jax.checkpoint.families.qwen import QWEN2, QWEN3
from s1jax.checkpoint.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from s1jax.checkpoint.families.rows import Row
from s1jax.checkpoint.families.smollm3 import SMOLLM3
from s1jax.config.layers import GQA
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError

_ALL = (
    QWEN2, QWEN3, LLAMA, QWEN2_MOE, QWEN3_MOE, MIXTRAL, GPT_OSS, DEEPSEEK_V2, DEEPSEEK_V3, GEMMA2, GEMMA3_TEXT, PHI3,
    OLMO2, OLMO3, SMOLLM3, MISTRAL, MINISTRAL3,
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


class Wrapper(NamedTuple):
    """A model of texts and images; its part for texts is read.

    Attributes:
      architecture: in config.json.
      families: that the part may have; the first where `text_config` does not say.
    """

    architecture: str
    families: tuple[Family, ...]


WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("Gemma3ForConditionalGeneration", (GEMMA3_TEXT,)),
    "mistral3": Wrapper("Mistral3ForConditionalGeneration", (MISTRAL, MINISTRAL3)),
}

_LINEAR = "it would need linear attention (gated DeltaNet), which keeps a state in place of a KV cache"
# What s1jax would need for architectures that look like known ones, as transformers 5.24 computes them.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _LINEAR),
    "deepseek_v32": "it would need the indexer that chooses the keys which a token sees",
    "deepseek_v4": "it would need the compressors and the indexer of its attention, and hyper-connections",
    "mistral4": "it would need latent attention whose queries are scaled by position",
    "kimi_k2": "its tokenizer is tiktoken's; with a tokenizer.json of your own, set model_type to deepseek_v3",
    "kimi_k25": "it is kimi_k2 with an encoder of images",
    "kimi_linear": "it would need linear attention (Kimi Delta Attention)",
    "phimoe": "it would need the router sparsemixer",
}


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The rows of a model's family; without a known one those of `rows.ALL`, which have every array."""
    family = FAMILIES.get(config.family)
    return rows_lib.ALL if family is None else family.rows


def exported(config: ModelConfig) -> Family:
    """The family that a model is exported as.

    Raises:
      UserError: no architecture of transformers has such layers, or not the one that the configuration names.
    """
    for layer in {layer for group in config.groups for layer in group.pattern}:
        if isinstance(layer.attention, GQA) and layer.attention.qkv_bias and layer.attention.qk_norm:
            raise UserError(
                "qkv_bias with qk_norm: no architecture of transformers has both; the model cannot be exported."
            )
    if config.family not in FAMILIES:
        raise UserError(
            f"model.family is {config.family!r}; s1jax exports {', '.join(FAMILIES)}. Set it to the one that has such "
            "layers."
        )
    FAMILIES[config.family].check_export(config)
    return FAMILIES[config.family]
