"""The keys of a GGUF file for a model's layers, as llama.cpp reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from s1jax.config.layers import GQA, MLA, Dense, Experts
from s1jax.config.model import ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.errors import UserError

_GATING = {"softmax": 1, "sigmoid": 2, "topk_softmax": 3}  # llama_expert_gating_func_type


def keys(config: ModelConfig) -> dict[str, Any]:
    """Keys of the architecture, whose name is left out in front of them; all that llama.cpp needs of them."""
    attention = config.groups[0].pattern[0].attention
    dense = config.mlp_dims
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_theta,
        **(_latent(attention, config) if isinstance(attention, MLA) else _grouped(config)),
        **_scaling(config.rope_scaling),
        **({"feed_forward_length": max(dense)} if dense else {}),
        **(_experts(config, config.experts) if config.experts else {}),
    }
    if config.final_softcap:
        values["final_logit_softcapping"] = config.final_softcap
    return values


def _grouped(config: ModelConfig) -> dict[str, Any]:
    specs = [layer.attention for layer in config.layers()]
    first = specs[0]
    assert isinstance(first, GQA)
    windows = {spec.window for spec in specs if isinstance(spec, GQA)} - {0}
    values: dict[str, Any] = {
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": first.rotated,
    }
    if windows:
        values["attention.sliding_window"] = max(windows)
    if first.position_scaling:
        values["attention.temperature_scale"] = first.position_scaling
        if config.rope_scaling is not None and config.rope_scaling.attention_factor == 1:
            values["rope.scaling.yarn_log_multiplier"] = 1.0
    if first.softcap:
        values["attn_logit_softcapping"] = first.softcap
    return values


def _latent(attention: MLA, config: ModelConfig) -> dict[str, Any]:
    """Of latent attention, which llama.cpp computes with one key head."""
    return {
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": attention.kv_rank + attention.rope_dim,
        "attention.value_length": attention.kv_rank,
        "attention.key_length_mla": attention.head_dim,
        "attention.value_length_mla": attention.value_dim,
        "attention.kv_lora_rank": attention.kv_rank,
        **({"attention.q_lora_rank": attention.q_rank} if attention.q_rank else {}),
        "rope.dimension_count": attention.rope_dim,
        "leading_dense_block_count": sum(isinstance(layer.mlp, Dense) for layer in config.layers()),
    }


def _experts(config: ModelConfig, spec: Experts) -> dict[str, Any]:
    values: dict[str, Any] = {
        "expert_count": spec.num_experts,
        "expert_used_count": spec.experts_per_token,
        "expert_feed_forward_length": spec.hidden,
        "expert_gating_func": _GATING[spec.scores],
    }
    if not config.mlp_dims:
        values["feed_forward_length"] = spec.hidden
    if spec.shared_gate:
        values["expert_shared_feed_forward_length"] = spec.shared_hidden
    elif spec.shared_hidden:
        values["expert_shared_count"] = spec.shared_hidden // spec.hidden
    if isinstance(config.groups[0].pattern[0].attention, MLA):
        values |= {
            "expert_weights_scale": spec.routed_scale,
            "expert_weights_norm": spec.normalize,
            "expert_group_count": spec.groups,
            "expert_group_used_count": spec.top_groups,
        }
    return values


def _scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """Of rotary scaling; that of Llama 3 is in a tensor, see `tensors`."""
    if scaling is None or scaling.kind == "llama3":
        return {}
    values: dict[str, Any] = {"rope.scaling.type": scaling.kind}
    if scaling.kind != "longrope":
        values["rope.scaling.factor"] = scaling.factor
    if scaling.original_context_length:
        values["rope.scaling.original_context_length"] = scaling.original_context_length
    if scaling.kind == "yarn":
        values |= {
            f"rope.scaling.yarn_{name}": getattr(scaling, name)
            for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))
            if getattr(scaling, name) != usual
        }
        if scaling.mscale_all_dim:
            values["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling.mscale_all_dim
    if scaling.kind == "longrope":
        usual = math.sqrt(1 + math.log(scaling.factor) / math.log(max(scaling.original_context_length, 2)))
        given = scaling.attention_factor
        values["rope.scaling.attn_factor"] = usual if given is None else given
    return values


def tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensors that are a part of the configuration: factors of rotary frequencies, float32."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "yarn"):
        return {}
    if scaling.kind == "longrope":
        return {
            "rope_factors_long.weight": np.array(scaling.long_factor, np.float32),
            "rope_factors_short.weight": np.array(scaling.short_factor, np.float32),
        }
    from s1jax.model import rope  # imports jax

    rotated = config.groups[0].pattern[0].attention.rotated
    if scaling.low_freq_factor != 1 or scaling.high_freq_factor != 4:
        raise UserError(
            f"model.rope_scaling has low_freq_factor {scaling.low_freq_factor} and high_freq_factor "
            f"{scaling.high_freq_factor}; s1jax writes only 1 and 4, which all published models have."
        )
    factors = 1 / np.asarray(rope.multipliers(rotated, config.rope_theta, scaling))
    return {"rope_freqs.weight": factors.astype(np.float32)}
