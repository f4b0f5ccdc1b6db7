"""OLMo-2 and OLMo-3, whose norms follow attention and MLP."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rope, rows
from s1jax.checkpoint.families.family import LAYER_KINDS, Family, num_layers, sliding, window
from s1jax.checkpoint.families.fields import Fields
from s1jax.checkpoint.families.rows import Row
from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import ModelConfig


class Olmo2(Family):
    """OLMo-2."""

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        return dataclasses.replace(_one(super().layers(fields)), norms="post")

    def attention(self, fields: Fields, **more: Any) -> GQA:
        return super().attention(fields, qk_norm_whole=True, **more)


class Olmo3(Olmo2):
    """OLMo-3: three layers of four have a window, and only the others have scaled frequencies."""

    def settings(self, fields: Fields) -> dict[str, Any]:
        found = super().settings(fields)
        return {**found, "local_rope_theta": self._rope(fields, fields.get("max_position_embeddings", int))[2]}

    def rope(self, fields: Fields, length: int) -> tuple[Any, Any]:
        return self._rope(fields, length)[:2]

    def _rope(self, fields: Fields, length: int) -> tuple[Any, Any, float]:
        base = self.silent["rope_theta"]
        return rope.read_kinds(fields, length, (base, base), "rope_theta")

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        count = num_layers(fields)
        full, mlp = self.attention(fields), Dense(fields.get("intermediate_size", int))
        local = dataclasses.replace(full, window=window(fields), rope="local")
        layers = [Layer(attention, mlp, "post") for attention in (full, local)]
        kinds = fields.names("layer_types", count, LAYER_KINDS) or [
            LAYER_KINDS[bool((i + 1) % 4)] for i in range(count)
        ]
        return [layers[LAYER_KINDS.index(kind)] for kind in kinds]

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        return sliding(config)

    def rope_to_json(self, config: ModelConfig) -> dict[str, Any]:
        found = super().rope_to_json(config)
        local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
        found["rope_parameters"] = dict(zip(rope.KINDS, (found["rope_parameters"], local), strict=True))
        return found


def _one(layers: Layer | list[Layer]) -> Layer:
    assert isinstance(layers, Layer)
    return layers


_ROWS = (
    rows.EMBED
    + rows.QUERY
    + rows.KEY_VALUE
    + rows.QK_NORM_WHOLE
    + rows.OUT
    + (
        Row(
            "model.layers.{}.post_attention_layernorm.weight",
            "blk.{}.post_attention_norm.weight",
            "attention_out_norm/scale",
            "D",
        ),
        Row(
            "model.layers.{}.post_feedforward_layernorm.weight",
            "blk.{}.post_ffw_norm.weight",
            "mlp_out_norm/scale",
            "D",
        ),
    )
    + rows.MLP
    + rows.HEAD
)
_SILENT = {
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
}  # fmt: skip

OLMO2 = Olmo2("olmo2", "Olmo2ForCausalLM", _ROWS, _SILENT, own_heads=True)
OLMO3 = Olmo3(
    "olmo3",
    "Olmo3ForCausalLM",
    _ROWS,
    {**_SILENT, "rope_theta": 5e5, "sliding_window": 4096},
    gguf_architecture="olmo2",
    own_heads=True,
)
