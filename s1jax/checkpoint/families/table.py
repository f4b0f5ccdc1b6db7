"""All families by their `model_type`."""

from __future__ import annotations

from s1jax.checkpoint.families.family import Family
from s1jax.checkpoint.families.llama import LLAMA
from s1jax.checkpoint.families.qwen import QWEN2, QWEN3
from s1jax.config.layers import GQA
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA)}


def exported(config: ModelConfig) -> Family:
    """The family that a model is exported as.

    Raises:
      UserError: no architecture of transformers has such layers, or not the one that the configuration names.
    """
    if not config.is_uniform:
        raise UserError("model.groups has layers that differ, which no known architecture has; it cannot be exported.")
    attention = config.groups[0].pattern[0].attention
    if not isinstance(attention, GQA):
        raise UserError("no architecture that s1jax exports has latent attention; the model cannot be exported.")
    if attention.qkv_bias and attention.qk_norm:
        raise UserError(
            "qkv_bias with qk_norm: no architecture of transformers has both; the model cannot be exported."
        )
    if config.family not in FAMILIES:
        raise UserError(
            f"model.family is {config.family!r}; s1jax exports {', '.join(FAMILIES)}. Set it to the one that has such "
            "layers."
        )
    FAMILIES[config.family].check_export(config, attention)
    return FAMILIES[config.family]
