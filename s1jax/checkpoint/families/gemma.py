"""Gemma 2 and the text part of Gemma 3."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rope, rows
from s1jax.checkpoint.families.family import (
    FIXED,
    LAYER_KINDS,
    Family,
    grouped,
    num_layers,
    query_scalar,
    query_scale,
    sliding,
    window,
)
from s1jax.checkpoint.families.fields import Fields
from s1jax.checkpoint.families.rows import Row
from s1jax.config.layers import Dense, Layer
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError

_GLOBAL, _LOCAL = 1e6, 1e4  # bases of Gemma 3's layers


@dataclasses.dataclass(frozen=True)
class Gemma(Family):
    """A Gemma.

    Attributes:
      local: layers with a window have a base of their own (Gemma 3).
    """

    local: bool = False

    def settings(self, fields: Fields) -> dict[str, Any]:
        found = super().settings(fields)
        found |= {"norm_offset": True, "scale_embeddings": True}
        found["final_softcap"] = fields.nullable("final_logit_softcapping", float) or 0.0
        if self.local:
            length = fields.get("max_position_embeddings", int)
            found["local_rope_theta"] = rope.read_kinds(fields, length, (_GLOBAL, _LOCAL), "rope_local_base_freq")[2]
        return found

    def rope(self, fields: Fields, length: int) -> tuple[Any, Any]:
        if not self.local:
            return super().rope(fields, length)
        return rope.read_kinds(fields, length, (_GLOBAL, _LOCAL), "rope_local_base_freq")[:2]

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        count = num_layers(fields)
        plain = super().attention(fields)
        scale = query_scale(plain, fields.get("query_pre_attn_scalar", float))
        softcap = fields.nullable("attn_logit_softcapping", float) or 0.0
        full = dataclasses.replace(plain, query_scale=scale, softcap=softcap)
        seen = window(fields)
        local = dataclasses.replace(full, window=seen, rope="local" if self.local else "global")
        mlp = Dense(fields.get("intermediate_size", int), "gelu_tanh")
        layers = [Layer(attention, mlp, "both") for attention in (full, local)]
        pattern = 2
        if self.local:  # `_sliding_window_pattern` is transformers 5's
            pattern = fields.first(("sliding_window_pattern", "_sliding_window_pattern"), int)
        kinds = fields.names("layer_types", count, LAYER_KINDS) or [
            LAYER_KINDS[bool((i + 1) % max(pattern, 1))] for i in range(count)
        ]
        return [layers[LAYER_KINDS.index(kind)] for kind in kinds]

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        scalar = query_scalar(grouped(config))
        if not isinstance(scalar, int):  # as transformers wants it
            raise UserError(
                f"model.family is {self.model_type!r}, whose query_scale is 1 / sqrt(n) for a whole number n, and this "
                f"model has {grouped(config).query_scale}; the model cannot be exported."
            )
        return {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": grouped(config).softcap or None,
            "final_logit_softcapping": config.final_softcap or None,
            **sliding(config),
        }

    def rope_to_json(self, config: ModelConfig) -> dict[str, Any]:
        found = super().rope_to_json(config)
        if self.local:
            local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
            found["rope_local_base_freq"] = config.local_rope_theta
            found["rope_parameters"] = dict(zip(rope.KINDS, (found["rope_parameters"], local), strict=True))
        return found


_FIXED = {
    **{key: value for key, value in FIXED.items() if key != "hidden_act"},
    "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False,
}  # fmt: skip
# Only `hidden_activation` is computed with; `hidden_act` of some files says otherwise.
_HARMLESS = frozenset({"hidden_act", "cache_implementation"})
_SILENT = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}  # fmt: skip

_NORMS = (
    Row("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", "attention_norm/scale", "D", plus=1),
    Row(
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.post_attention_norm.weight",
        "attention_out_norm/scale",
        "D",
        plus=1,
    ),
    Row("model.layers.{}.pre_feedforward_layernorm.weight", "blk.{}.ffn_norm.weight", "mlp_norm/scale", "D", plus=1),
    Row(
        "model.layers.{}.post_feedforward_layernorm.weight",
        "blk.{}.post_ffw_norm.weight",
        "mlp_out_norm/scale",
        "D",
        plus=1,
    ),
)
_QK_NORM = tuple(row._replace(plus=1) for row in rows.QK_NORM)
_ROWS = (
    rows.EMBED
    + rows.QUERY
    + rows.KEY_VALUE
    + _QK_NORM
    + rows.OUT
    + _NORMS
    + rows.MLP
    + (rows.HEAD[0]._replace(plus=1), rows.HEAD[1])
)

GEMMA2 = Gemma(
    "gemma2",
    "Gemma2ForCausalLM",
    _ROWS,
    {
        **_SILENT, "vocab_size": 256000, "max_position_embeddings": 8192, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    fixed=_FIXED,
    harmless=_HARMLESS,
    whole_heads=True,
)  # fmt: skip
GEMMA3_TEXT = Gemma(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _ROWS,
    {
        **_SILENT, "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6,
        "sliding_window_pattern": 6,
    },
    fixed={**_FIXED, "attn_logit_softcapping": None},  # which transformers does not compute here
    harmless=_HARMLESS,
    qk_norm=True,
    gguf_architecture="gemma3",
    whole_heads=True,
    local=True,
)  # fmt: skip
