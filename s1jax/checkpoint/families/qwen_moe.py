"""Qwen2 and Qwen3 with experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rows
from s1jax.checkpoint.families.family import FIXED, Family, check_all_full, experts, grouped, num_layers
from s1jax.checkpoint.families.fields import Fields
from s1jax.config.layers import GQA, Dense, Experts, Layer
from s1jax.config.model import ModelConfig
from s1jax.config.schema import shown
from s1jax.errors import UserError

# Names of the number of experts, as transformers 4 and 5 write it.
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclasses.dataclass(frozen=True)
class QwenMoe(Family):
    """A Qwen with experts.

    Attributes:
      shared: a shared expert with a gate (Qwen2).
    """

    shared: bool = False

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        check_all_full(fields)
        attention = self.attention(fields)
        step, hidden = fields.get("decoder_sparse_step", int), fields.get("intermediate_size", int)
        dense = fields.get("mlp_only_layers", list)
        if step < 1 or not all(type(number) is int for number in dense):
            raise UserError(
                f"{fields.where}: decoder_sparse_step is {step} and mlp_only_layers {shown(dense)}; they must be a "
                "positive number and a list of numbers, so get the file again."
            )
        mlp = Experts(
            num_experts=fields.first(COUNTS, int),
            experts_per_token=fields.get("num_experts_per_tok", int),
            hidden=fields.get("moe_intermediate_size", int),
            normalize=fields.get("norm_topk_prob", bool),
            shared_hidden=fields.get("shared_expert_intermediate_size", int) if self.shared else 0,
            shared_gate=self.shared,
        )
        if step == 1 and not dense:
            return Layer(attention, mlp)
        count = num_layers(fields)
        has_experts = [i not in dense and (i + 1) % step == 0 for i in range(count)]
        return [Layer(attention, mlp if there else Dense(hidden)) for there in has_experts]

    def attention(self, fields: Fields, **more: Any) -> GQA:
        if self.shared:
            more["qkv_bias"] = fields.get("qkv_bias", bool)
        return super().attention(fields, **more)

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        spec = experts(config)
        found = {
            "num_experts": spec.num_experts,
            **({} if self.shared else {"num_local_experts": spec.num_experts}),
            "num_experts_per_tok": spec.experts_per_token,
            "moe_intermediate_size": spec.hidden,
            "norm_topk_prob": spec.normalize,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, layer in enumerate(config.layers()) if isinstance(layer.mlp, Dense)],
            "output_router_logits": False,
            "use_sliding_window": False,
        }
        if self.shared:
            found |= {"shared_expert_intermediate_size": spec.shared_hidden, "qkv_bias": grouped(config).qkv_bias}
        return found


_SILENT = {
    "max_position_embeddings": 32768, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False,
    "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24,
}  # fmt: skip
_WINDOWS = frozenset({"sliding_window", "max_window_layers"})  # of use_sliding_window, which must be off
_ATTENTION = rows.EMBED + rows.ATTENTION_NORM + rows.GQA_ROWS + rows.MLP_NORM
_MOE = rows.ROUTER + rows.EXPERTS

QWEN2_MOE = QwenMoe(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    _ATTENTION + rows.MLP + _MOE + rows.shared("shared_expert") + rows.SHARED_GATE + rows.HEAD,
    {
        **_SILENT, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
    },
    harmless=_WINDOWS,
    gguf_architecture="qwen2moe",
    shared=True,
)  # fmt: skip
QWEN3_MOE = QwenMoe(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    _ATTENTION + rows.MLP + _MOE + rows.HEAD,
    {
        **_SILENT, "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    },
    fixed={**FIXED, "qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0},
    harmless=_WINDOWS,
    qk_norm=True,
    gguf_architecture="qwen3moe",
)  # fmt: skip
