"""Mistral and Ministral 3, and Mixtral, which has experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rope, rows
from s1jax.checkpoint.families.family import FIXED, Family, check_all_full, experts, grouped, window
from s1jax.checkpoint.families.fields import Fields
from s1jax.config.layers import GQA, Dense, Experts, Layer
from s1jax.config.model import ModelConfig
from s1jax.config.schema import shown
from s1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mistral(Family):
    """A Mistral: a Llama all of whose layers may have a window."""

    interleaved_in_gguf: bool = True

    def attention(self, fields: Fields, **more: Any) -> GQA:
        return super().attention(fields, window=window(fields), **more)

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": grouped(config).window or None}


class Mixtral(Mistral):
    """Mistral with experts in place of the MLP."""

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        mlp = Experts(
            num_experts=fields.first(("num_local_experts", "num_experts"), int),
            experts_per_token=fields.get("num_experts_per_tok", int),
            hidden=fields.get("intermediate_size", int),
            normalize=True,
        )
        return Layer(self.attention(fields), mlp)

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        spec = experts(config)
        return {
            **super().extra(config),
            "intermediate_size": spec.hidden,
            "num_local_experts": spec.num_experts,
            "num_experts_per_tok": spec.experts_per_token,
            "output_router_logits": False,
        }


class Ministral3(Mistral):
    """Mistral whose queries grow with their position."""

    _OPTIONS = rope.Options(more=frozenset({"llama_4_scaling_beta", "max_position_embeddings"}))

    def rope(self, fields: Fields, length: int) -> tuple[Any, Any]:
        return rope.read(fields, fields.raw("rope_theta"), length, self._OPTIONS)

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        check_all_full(fields)
        settings = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
        beta = settings.get("llama_4_scaling_beta") or 0.0
        if type(beta) not in (int, float):
            raise UserError(f"{fields.where}: llama_4_scaling_beta is {shown(beta)}; it must be a number.")
        attention = self.attention(fields, position_scaling=float(beta))
        return Layer(attention, Dense(fields.get("intermediate_size", int)))

    def rope_to_json(self, config: ModelConfig) -> dict[str, Any]:
        found = super().rope_to_json(config)
        found["rope_parameters"]["llama_4_scaling_beta"] = grouped(config).position_scaling
        # transformers has known this family since version 5, which takes rope_scaling first.
        return {key: value for key, value in found.items() if key != "rope_scaling"}


_SILENT = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip

MISTRAL = Mistral(
    "mistral", "MistralForCausalLM", rows.PLAIN, {**_SILENT, "sliding_window": 4096}, gguf_architecture="llama"
)
MINISTRAL3 = Ministral3(
    "ministral3",
    "Ministral3ForCausalLM",
    rows.PLAIN,
    {
        **_SILENT, "vocab_size": 131072, "num_hidden_layers": 34, "max_position_embeddings": 262144, "head_dim": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    },
    gguf_architecture="mistral3",
)  # fmt: skip

_EXPERT = "model.layers.{}.block_sparse_moe.experts.{e}."
_NAMES = ("model.layers.{}.block_sparse_moe.gate.weight", _EXPERT + "w1.weight", _EXPERT + "w3.weight",
          _EXPERT + "w2.weight")  # fmt: skip
_MOE = rows.ROUTER + rows.EXPERTS

MIXTRAL = Mixtral(
    "mixtral",
    "MixtralForCausalLM",
    rows.EMBED
    + rows.ATTENTION_NORM
    + rows.GQA_ROWS
    + rows.MLP_NORM
    + tuple(row._replace(huggingface=name) for row, name in zip(_MOE, _NAMES, strict=True))
    + rows.HEAD,
    {**_SILENT, "num_experts_per_tok": 2, "num_local_experts": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    fixed={**FIXED, "router_jitter_noise": 0.0},
    gguf_architecture="llama",
)
