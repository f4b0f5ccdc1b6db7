"""DeepSeek-V2, DeepSeek-V3 and R1: latent attention, and experts after the first layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rope, rows
from s1jax.checkpoint.families.family import FIXED, Family, experts, num_layers
from s1jax.checkpoint.families.fields import Fields
from s1jax.config.layers import MLA, Dense, Experts, Layer
from s1jax.config.model import ModelConfig
from s1jax.config.schema import shown
from s1jax.errors import UserError

_OPTIONS = rope.Options(mscale=True)


@dataclasses.dataclass(frozen=True)
class DeepSeek(Family):
    """A DeepSeek.

    Attributes:
      selection_bias: the router has a bias that chooses, and scores by sigmoid (V3).
    """

    selection_bias: bool = False

    def settings(self, fields: Fields) -> dict[str, Any]:
        given, rope_dim = fields.raw("head_dim"), fields.raw("qk_rope_head_dim")
        # transformers 5.24 overwrites it for V2. For V3 it makes rotary angles of that width, which then fit no query.
        if self.selection_bias and given is not None and given != rope_dim:
            raise UserError(
                f"{fields.where}: head_dim is {shown(given)} and qk_rope_head_dim {shown(rope_dim)}; they mean the same"
                " here, so set head_dim to the other or leave it out."
            )
        fields.replace("head_dim", 0)  # attention has its own
        return super().settings(fields)

    def rope(self, fields: Fields, length: int) -> tuple[Any, Any]:
        return rope.read(fields, fields.raw("rope_theta"), length, _OPTIONS)

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        count, dense = num_layers(fields), fields.get("first_k_dense_replace", int)
        attention = MLA(
            num_heads=fields.get("num_attention_heads", int),
            q_rank=fields.nullable("q_lora_rank", int) or 0,
            kv_rank=fields.get("kv_lora_rank", int),
            nope_dim=fields.get("qk_nope_head_dim", int),
            rope_dim=fields.get("qk_rope_head_dim", int),
            value_dim=fields.get("v_head_dim", int),
        )
        first = Layer(attention, Dense(fields.get("intermediate_size", int)))
        rest = Layer(attention, self._experts(fields))
        return [first if i < dense else rest for i in range(count)]

    def _experts(self, fields: Fields) -> Experts:
        hidden = fields.get("moe_intermediate_size", int)
        grouped = self.selection_bias
        if not grouped:
            method = fields.get("topk_method", str)
            if method not in ("greedy", "group_limited_greedy"):
                raise UserError(
                    f"{fields.where}: topk_method is {shown(method)}, which this decoder does not compute; only greedy "
                    "and group_limited_greedy are."
                )
            grouped = method == "group_limited_greedy"
        groups, top = (fields.nullable(key, int) or 1 for key in ("n_group", "topk_group"))
        return Experts(
            num_experts=fields.first(("n_routed_experts", "num_local_experts", "num_experts"), int),
            experts_per_token=fields.get("num_experts_per_tok", int),
            hidden=hidden,
            scores="sigmoid" if self.selection_bias else "softmax",
            normalize=self.selection_bias and fields.get("norm_topk_prob", bool),
            routed_scale=fields.get("routed_scaling_factor", float),
            groups=groups if grouped else 1,
            top_groups=top if grouped else 1,
            selection_bias=self.selection_bias,
            shared_hidden=hidden * (fields.nullable("n_shared_experts", int) or 0),
        )

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        attention, spec = config.groups[0].pattern[0].attention, experts(config)
        if not isinstance(attention, MLA):
            raise UserError(
                f"model.family is {self.model_type!r}, which has latent attention, and this model has not; set "
                "model.family to the architecture that has its layers. The model cannot be exported."
            )
        by_group = {} if self.selection_bias else {"topk_method": _METHODS[spec.groups > 1]}
        return {
            "head_dim": attention.rope_dim,
            "num_key_value_heads": attention.num_heads,
            "q_lora_rank": attention.q_rank or None,
            "kv_lora_rank": attention.kv_rank,
            "qk_nope_head_dim": attention.nope_dim,
            "qk_rope_head_dim": attention.rope_dim,
            "v_head_dim": attention.value_dim,
            "first_k_dense_replace": sum(isinstance(layer.mlp, Dense) for layer in config.layers()),
            "n_routed_experts": spec.num_experts,
            "num_experts_per_tok": spec.experts_per_token,
            "moe_intermediate_size": spec.hidden,
            "n_shared_experts": spec.shared_hidden // spec.hidden,
            "routed_scaling_factor": spec.routed_scale,
            "norm_topk_prob": spec.normalize,
            "n_group": spec.groups,
            "topk_group": spec.top_groups,
            "moe_layer_freq": 1,
            "scoring_func": "sigmoid" if self.selection_bias else "softmax",
            **by_group,
        }


_METHODS = ("greedy", "group_limited_greedy")
_HARMLESS = frozenset(
    {"head_dim", "num_key_value_heads", "qk_head_dim", "aux_loss_alpha", "seq_aux", "ep_size"}
    | {"num_nextn_predict_layers", "num_mtp_layers"}  # that layer is not read
)
_SILENT = {"num_attention_heads": 32, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
           "qk_rope_head_dim": 64, "v_head_dim": 128}  # fmt: skip
_ROWS = (
    rows.EMBED
    + rows.ATTENTION_NORM
    + rows.LATENT
    + rows.MLP_NORM
    + rows.MLP
    + rows.ROUTER
    + rows.EXPERTS
    + rows.shared("shared_experts")
    + rows.HEAD
)

DEEPSEEK_V2 = DeepSeek(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    _ROWS,
    {
        **_SILENT, "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "max_position_embeddings": 2048, "first_k_dense_replace": 0, "n_routed_experts": 64, "n_shared_experts": 2,
        "routed_scaling_factor": 1.0, "topk_method": "greedy", "moe_intermediate_size": 1407,
    },
    fixed={**FIXED, "norm_topk_prob": False, "scoring_func": "softmax", "moe_layer_freq": 1},
    harmless=_HARMLESS,
    gguf_architecture="deepseek2",
    whole_heads=True,
)  # fmt: skip
DEEPSEEK_V3 = DeepSeek(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    _ROWS[:-2] + rows.SELECTION_BIAS + rows.HEAD,
    {
        **_SILENT, "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "max_position_embeddings": 4096, "first_k_dense_replace": 3,
        "n_routed_experts": 256, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "moe_intermediate_size": 2048,
        "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "norm_topk_prob": True,
    },
    fixed={
        **FIXED, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1, "rope_interleave": True,
    },
    harmless=_HARMLESS,
    gguf_architecture="deepseek2",
    selection_bias=True,
)  # fmt: skip
