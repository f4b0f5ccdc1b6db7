"""Phi-3, Phi-3.5 and Phi-4, which store projections of the same input as one tensor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from s1jax.checkpoint.families import rope, rows
from s1jax.checkpoint.families.family import FIXED, Family, check_all_full, grouped, window
from s1jax.checkpoint.families.fields import Fields
from s1jax.checkpoint.families.rows import Row
from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import ModelConfig
from s1jax.config.schema import shown
from s1jax.errors import UserError

_OPTIONS = rope.Options(kinds=("default", "longrope"), partial=True)


class Phi(Family):
    """A Phi."""

    def rope(self, fields: Fields, length: int) -> tuple[Any, Any]:
        given = dict(fields.values)
        for key in ("rope_scaling", "rope_parameters"):  # its names before longrope was called so
            scaling = given.get(key)
            for name in ("type", "rope_type"):
                if isinstance(scaling, dict) and scaling.get(name) in ("su", "yarn"):
                    given[key] = scaling = {**scaling, name: "longrope"}
        for key in ("rope_scaling", "rope_parameters", "original_max_position_embeddings"):
            fields.has(key)
        return rope.read(Fields(given, fields.where, self.silent), fields.raw("rope_theta"), length, _OPTIONS)

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        check_all_full(fields)
        return Layer(self.attention(fields), Dense(fields.get("intermediate_size", int)))

    def attention(self, fields: Fields, **more: Any) -> GQA:
        plain = super().attention(fields, window=window(fields), **more)
        found = {fields.raw("partial_rotary_factor")}
        for key in ("rope_scaling", "rope_parameters"):
            found.add((fields.values.get(key) or {}).get("partial_rotary_factor"))
        given = found - {None} or {1.0}
        factor = next(iter(given))
        if len(given) > 1 or type(factor) not in (int, float) or not 0 < factor <= 1:
            raise UserError(
                f"{fields.where}: partial_rotary_factor is {', '.join(map(shown, given))}; it must be one number "
                "from 0 to 1."
            )
        rotated = int(plain.head_dim * factor)
        return dataclasses.replace(plain, rotary_dim=0 if rotated == plain.head_dim else rotated)

    def check_export(self, config: ModelConfig) -> None:
        spec = grouped(config)
        if config.rope_scaling is not None and spec.num_heads * spec.head_dim != config.d_model:
            raise UserError(
                f"num_heads {spec.num_heads} times head_dim {spec.head_dim} is not d_model {config.d_model}, which "
                "transformers requires of a Phi3 with longrope; the model cannot be exported."
            )
        super().check_export(config)

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": grouped(config).window or None}

    def rope_to_json(self, config: ModelConfig) -> dict[str, Any]:
        spec, scaling = grouped(config), config.rope_scaling
        # int(head_dim * factor) must be rotary_dim again
        part = next(f for f in (spec.rotated / spec.head_dim, math.nextafter(spec.rotated / spec.head_dim, 2))
                    if int(spec.head_dim * f) == spec.rotated)  # fmt: skip
        found = super().rope_to_json(config)
        found |= {"partial_rotary_factor": part}
        found["rope_parameters"]["partial_rotary_factor"] = part
        if scaling is None:
            return found
        found["original_max_position_embeddings"] = scaling.original_context_length
        if scaling.factor == config.context_length / max(scaling.original_context_length, 1):
            found["rope_parameters"].pop("factor", None)
        # transformers 4 accepts these three only, and 5 takes rope_scaling first.
        short = {"type": scaling.kind, "short_factor": list(scaling.short_factor)}
        found["rope_scaling"] = {**short, "long_factor": list(scaling.long_factor)}
        if "factor" in found["rope_parameters"] or scaling.attention_factor is not None:
            del found["rope_scaling"]
        return found


def _joined(name: str, letters: str, *several: Row) -> tuple[Row, ...]:
    """Rows of arrays that follow each other along an axis of one tensor."""
    return tuple(row._replace(huggingface=name, join=letter) for row, letter in zip(several, letters, strict=True))


_QKV = _joined("model.layers.{}.self_attn.qkv_proj.weight", "NKK", rows.QUERY[0], rows.KEY_VALUE[0], rows.KEY_VALUE[2])
_GATE_UP = _joined("model.layers.{}.mlp.gate_up_proj.weight", "FF", *rows.MLP[:2])

PHI3 = Phi(
    "phi3",
    "Phi3ForCausalLM",
    rows.EMBED
    + rows.ATTENTION_NORM
    + tuple(row._replace(gguf="blk.{}.attn_qkv.weight") for row in _QKV)
    + rows.OUT
    + rows.MLP_NORM
    + tuple(row._replace(gguf="blk.{}.ffn_up.weight") for row in _GATE_UP)
    + rows.MLP[2:]
    + rows.HEAD,
    {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    fixed={
        **{key: value for key, value in FIXED.items() if key != "partial_rotary_factor"},
        "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
    },
    own_heads=True,
)  # fmt: skip
