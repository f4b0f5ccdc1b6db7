"""OpenAI's gpt-oss, whose experts are stored stacked, in bfloat16 or MXFP4."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rows
from s1jax.checkpoint.families.family import FIXED, LAYER_KINDS, Family, experts, num_layers, sliding, window
from s1jax.checkpoint.families.fields import Fields
from s1jax.checkpoint.families.rows import Row
from s1jax.config.layers import Experts, Layer
from s1jax.config.model import ModelConfig


class GptOss(Family):
    """A gpt-oss."""

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        count = num_layers(fields)
        full = self.attention(fields, qkv_bias=True, out_bias=True, sinks=True)
        local = dataclasses.replace(full, window=window(fields))
        mlp = Experts(
            num_experts=fields.first(("num_local_experts", "num_experts"), int),
            experts_per_token=fields.first(("num_experts_per_tok", "experts_per_token"), int),
            hidden=fields.get("intermediate_size", int),
            scores="topk_softmax",
            router_bias=True,
            expert_bias=True,
            activation="clamped",
        )
        kinds = fields.names("layer_types", count, LAYER_KINDS) or [LAYER_KINDS[(i + 1) % 2] for i in range(count)]
        layers = [Layer(attention, mlp) for attention in (full, local)]
        return [layers[LAYER_KINDS.index(kind)] for kind in kinds]

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        spec = experts(config)
        return {
            "intermediate_size": spec.hidden,
            "num_local_experts": spec.num_experts,
            "num_experts_per_tok": spec.experts_per_token,
            "attention_bias": True,
            "swiglu_limit": 7.0,
            "output_router_logits": False,
            **sliding(config),
        }


_MLP = "model.layers.{}.mlp."
_GATE_UP = {"join": "F", "alternating": True}
_EXPERTS = (
    Row(_MLP + "router.weight", "blk.{}.ffn_gate_inp.weight", "mlp/router/kernel", "E D"),
    Row(_MLP + "router.bias", "blk.{}.ffn_gate_inp.bias", "mlp/router/bias", "E"),
    Row(_MLP + "experts.gate_up_proj", "", "mlp/experts/gate/kernel", "E D F", join="F", alternating=True),
    Row(_MLP + "experts.gate_up_proj", "", "mlp/experts/up/kernel", "E D F", join="F", alternating=True),
    Row(_MLP + "experts.gate_up_proj_bias", "", "mlp/experts/gate/bias", "E F", join="F", alternating=True),
    Row(_MLP + "experts.gate_up_proj_bias", "", "mlp/experts/up/bias", "E F", join="F", alternating=True),
    Row(_MLP + "experts.down_proj", "", "mlp/experts/down/kernel", "E F D"),
    Row(_MLP + "experts.down_proj_bias", "blk.{}.ffn_down_exps.bias", "mlp/experts/down/bias", "E D"),
    *(row._replace(huggingface="") for row in rows.EXPERTS),
    Row("", "blk.{}.ffn_gate_exps.bias", "mlp/experts/gate/bias", "E F"),
    Row("", "blk.{}.ffn_up_exps.bias", "mlp/experts/up/bias", "E F"),
)

GPT_OSS = GptOss(
    "gpt_oss",
    "GptOssForCausalLM",
    rows.EMBED
    + rows.ATTENTION_NORM
    + rows.QUERY
    + rows.KEY_VALUE
    + rows.OUT
    + rows.OUT_BIAS
    + rows.SINKS
    + (rows.MLP_NORM[0]._replace(gguf="blk.{}.post_attention_norm.weight"),)
    + _EXPERTS
    + rows.HEAD,
    {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "sliding_window": 128, "num_experts_per_tok": 4,
    },
    fixed={**FIXED, "attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    harmless=frozenset({"initial_context_length"}),
    gguf_architecture="gpt-oss",
)  # fmt: skip
