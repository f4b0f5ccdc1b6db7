"""All families by their `model_type`."""

from __future__ import annotations

from s1jax.checkpoint.families import rows as rows_lib
from s1jax.checkpoint.families.family import Family
from s1jax.checkpoint.families.llama import LLAMA
from s1jax.checkpoint.families.qwen import QWEN2, QWEN3
from s1jax.checkpoint.families.rows import Row
from s1jax.config.layers import GQA
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA)}


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
