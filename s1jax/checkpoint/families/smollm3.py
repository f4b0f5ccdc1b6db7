"""SmolLM3, some of whose layers have no rotary positions."""

from __future__ import annotations

import dataclasses
from typing import Any

from s1jax.checkpoint.families import rows
from s1jax.checkpoint.families.family import Family, check_all_full, num_layers
from s1jax.checkpoint.families.fields import Fields
from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import ModelConfig
from s1jax.config.schema import shown
from s1jax.errors import UserError


class SmolLM3(Family):
    """SmolLM3."""

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        check_all_full(fields)
        count, interval = num_layers(fields), fields.get("no_rope_layer_interval", int)
        turned, mlp = self.attention(fields), Dense(fields.get("intermediate_size", int))
        given = [int((i + 1) % max(interval, 1) != 0) for i in range(count)]
        if fields.has("no_rope_layers"):  # 0 for layers without
            given = fields.get("no_rope_layers", list)
            if len(given) != count or not all(type(one) is int and one in (0, 1) for one in given):
                raise UserError(
                    f"{fields.where}: no_rope_layers is {shown(given)}; it must have 0 or 1 for each of {count} "
                    "layers, so get the file again."
                )
        layers = [Layer(dataclasses.replace(turned, rope="none"), mlp), Layer(turned, mlp)]
        return [layers[one] for one in given]

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        rotated = [isinstance(layer.attention, GQA) and layer.attention.rope != "none" for layer in config.layers()]
        return {"no_rope_layers": [int(one) for one in rotated], "use_sliding_window": False}


SMOLLM3 = SmolLM3(
    "smollm3",
    "SmolLM3ForCausalLM",
    rows.PLAIN,
    {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6,
        "no_rope_layer_interval": 4, "tie_word_embeddings": True,
    },
    harmless=frozenset({"sliding_window", "max_window_layers"}),
    interleaved_in_gguf=True,
)  # fmt: skip
