"""What distinguishes one published architecture from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.checkpoint.families import rope
from s1jax.checkpoint.families.fields import Fields, wrong_type
from s1jax.checkpoint.families.rows import Row
from s1jax.config import grouping
from s1jax.config.layers import GQA, Dense, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.schema import shown
from s1jax.errors import UserError

MAX_LAYERS = 10_000  # that may be listed one by one

# Settings that change the computation in a way the decoder does not have: key -> the only value accepted.
FIXED: Mapping[str, Any] = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False,
    "partial_rotary_factor": 1.0, "rope_interleaved": False, "is_causal": True,
    "use_mrope": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture as Hugging Face and llama.cpp know it; a subclass overrides what is its own.

    Attributes:
      model_type: in config.json and `ModelConfig.family`.
      architecture: in config.json.
      rows: of its tensors.
      silent: what transformers assumes for keys that config.json does not have.
      fixed: fields of config.json that must have the given value.
      harmless: fields of config.json that change nothing, beside those of `fields.HARMLESS`.
      qkv_bias: query, key and value projections have a bias.
      qk_norm: queries and keys are normalised.
      gguf_architecture: `general.architecture` of a GGUF file; "": the model_type.
      interleaved_in_gguf: llama.cpp stores the two halves of a rotation side by side.
      own_heads: without `num_key_value_heads`, every query head has a key head of its own.
      whole_heads: transformers accepts a `hidden_size` only if it is a multiple of `num_attention_heads`.
    """

    model_type: str
    architecture: str
    rows: tuple[Row, ...]
    silent: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=lambda: FIXED)
    harmless: frozenset[str] = frozenset()
    qkv_bias: bool = False
    qk_norm: bool = False
    gguf_architecture: str = ""
    interleaved_in_gguf: bool = False
    own_heads: bool = False
    whole_heads: bool = False

    def read(self, values: Mapping[str, Any], where: str) -> ModelConfig:
        """The model that a config.json describes.

        Raises:
          UserError: a setting that the decoder cannot represent, a missing, mistyped or unknown one.
        """
        fields = Fields(values, where, self.silent)
        fields.fixed(self.fixed)
        try:
            settings = self.settings(fields)
            config = ModelConfig(**{**settings, "groups": groups(settings["groups"], fields)})
        except UserError as error:
            if str(error).startswith(where):
                raise
            raise UserError(f"{where}: {error}") from None  # of a spec, which knows no file
        fields.finish(self.harmless)
        return config

    def settings(self, fields: Fields) -> dict[str, Any]:
        """The fields of `ModelConfig`; `groups` may be one layer, if all are like it, or a list of them."""
        d_model, num_heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
        if not fields.has("head_dim"):
            if num_heads <= 0 or d_model % num_heads:
                raise UserError(
                    f"{fields.where}: hidden_size {d_model} is not a multiple of num_attention_heads {num_heads}; add "
                    "head_dim."
                )
            fields.default("head_dim", d_model // num_heads)
        length = fields.get("max_position_embeddings", int)
        theta, scaling = self.rope(fields, length)
        fields.replace("rope_theta", theta)
        return dict(
            family=self.model_type,
            vocab_size=fields.get("vocab_size", int),
            d_model=d_model,
            rope_theta=fields.get("rope_theta", float),
            rope_scaling=scaling,
            norm_eps=fields.get("rms_norm_eps", float),
            tied_embeddings=fields.get("tie_word_embeddings", bool),
            context_length=max(length, rope.extended_length(scaling)),
            groups=self.layers(fields),
        )

    def rope(self, fields: Fields, length: int) -> tuple[Any, Any]:
        """Base and scaling of the rotary frequencies."""
        return rope.read(fields, fields.raw("rope_theta"), length)

    def layers(self, fields: Fields) -> Layer | list[Layer]:
        """The layer that all are like, or a list of all."""
        check_all_full(fields)
        return Layer(self.attention(fields), Dense(fields.get("intermediate_size", int)))

    def attention(self, fields: Fields, **more: Any) -> GQA:
        """Of the layers."""
        name = "num_key_value_heads"
        if fields.values.get(name, 0) is None or (self.own_heads and name not in fields.values):
            fields.replace(name, fields.raw("num_attention_heads"))
        heads = [fields.get(key, int) for key in ("num_attention_heads", name, "head_dim")]
        return GQA(*heads, **{"qkv_bias": self.qkv_bias, "qk_norm": self.qk_norm, **more})

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `read`: fields of a config.json that transformers 4 and 5 read the same way."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            **({"intermediate_size": max(config.mlp_dims)} if config.mlp_dims else {}),
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": config.context_length,
            "rms_norm_eps": config.norm_eps,
            **self.rope_to_json(config),
            "tie_word_embeddings": config.tied_embeddings,
            "attention_dropout": 0.0,
            **dict.fromkeys(("bos_token_id", "pad_token_id")),  # defaults exceed small vocabularies
            **self.extra(config),
        }

    def rope_to_json(self, config: ModelConfig) -> dict[str, Any]:
        """The inverse of `rope`, in the spellings of transformers 4 and 5."""
        scaling = rope.to_json(config.rope_scaling)
        return {
            "rope_theta": config.rope_theta,
            "rope_scaling": None if config.rope_scaling is None else scaling,
            "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
        }

    def extra(self, config: ModelConfig) -> dict[str, Any]:
        """Fields of config.json that only this family has, or that it writes otherwise."""
        return {}

    def check_export(self, config: ModelConfig) -> None:
        """Checks that this family has such a model: what `write` writes, `read` reads as the same.

        Raises:
          UserError: it has not, and what differs.
        """
        attention = config.groups[0].pattern[0].attention
        if not config.mlp_dims and not any(row.path == "mlp/router/kernel" for row in self.rows):
            raise UserError(
                f"model.family is {self.model_type!r}, which has no experts, and this model has; set model.family to "
                "the architecture that has such layers. The model cannot be exported."
            )
        if self.whole_heads and config.d_model % attention.num_heads:
            raise UserError(
                f"d_model {config.d_model} is not a multiple of num_heads {attention.num_heads}, which transformers "
                f"requires of a {self.architecture.removesuffix('ForCausalLM')}; the model cannot be exported."
            )
        held = self.read(self.write(config), "model")
        for name, ours, theirs in differences(config, held):
            raise UserError(
                f"model.family is {self.model_type!r}, which has {name} {theirs}, and this model has {ours}; set "
                "model.family to the architecture that has it. The model cannot be exported."
            )


def differences(config: ModelConfig, other: ModelConfig) -> list[tuple[str, str, str]]:
    """Name and both values of every setting in which two models differ, those of layers first."""
    found = []
    for ours, theirs in zip(config.layers(), other.layers(), strict=False):
        for one, two in ((ours, theirs), (ours.attention, theirs.attention), (ours.mlp, theirs.mlp)):
            if type(one) is not type(two):
                found.append(("layers of kind", type(one).__name__, type(two).__name__))
                continue
            found += [
                (field.name, shown(getattr(one, field.name)), shown(getattr(two, field.name)))
                for field in dataclasses.fields(one)
                if not dataclasses.is_dataclass(getattr(one, field.name))
                and getattr(one, field.name) != getattr(two, field.name)
            ]
    found += [
        (field.name, shown(getattr(config, field.name)), shown(getattr(other, field.name)))
        for field in dataclasses.fields(config)
        if field.name != "groups" and getattr(config, field.name) != getattr(other, field.name)
    ]
    return found


def check_all_full(fields: Fields) -> None:
    """Raises UserError where `layer_types` names layers that see less than all earlier tokens."""
    kinds = fields.values.get("layer_types") or []
    fields.has("layer_types")
    if not isinstance(kinds, list):
        raise wrong_type(fields.where, "layer_types", kinds, "a list")
    if any(kind != "full_attention" for kind in kinds):
        raise UserError(
            f"{fields.where}: layer_types names other layers than full_attention, which this decoder lacks."
        )


LAYER_KINDS = ("full_attention", "sliding_attention")


def sliding(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of a model some of whose layers have a window."""
    windows = [getattr(layer.attention, "window", 0) for layer in config.layers()]
    kinds = [LAYER_KINDS[bool(window)] for window in windows]
    return {"sliding_window": max(windows) or None, "layer_types": kinds}


def window(fields: Fields) -> int:
    """The value of `sliding_window`; 0 where there is none, or rows of every length fit into it."""
    size = fields.nullable("sliding_window", int)
    return 0 if size is None or size >= fields.get("max_position_embeddings", int) else int(size)


def query_scale(spec: GQA, scalar: float) -> float:
    """`GQA.query_scale` for scores that are divided by the root of `scalar`."""
    return 0.0 if scalar == spec.head_dim else float(scalar) ** -0.5


def query_scalar(spec: GQA) -> float:
    """The inverse of `query_scale`; a whole number where it is one."""
    scalar = spec.query_scale**-2 if spec.query_scale else spec.head_dim
    return round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar


def grouped(config: ModelConfig) -> GQA:
    """The grouped-query attention of the first layer; UserError where it has another."""
    attention = config.groups[0].pattern[0].attention
    if not isinstance(attention, GQA):
        raise UserError(
            f"model.family is {config.family!r}, which has no latent attention, and this model has; set model.family "
            "to the architecture that has it. The model cannot be exported."
        )
    return attention


def experts(config: ModelConfig) -> Experts:
    """The spec of a model's experts; UserError where it has none."""
    if config.experts is None:
        raise UserError(
            f"model.family is {config.family!r}, which has experts, and this model has none; set model.family to the "
            "architecture that has such layers. The model cannot be exported."
        )
    return config.experts


def num_layers(fields: Fields) -> int:
    """Number of layers of a model whose layers are listed one by one."""
    count = fields.get("num_hidden_layers", int)
    if not 0 < count <= MAX_LAYERS:
        raise UserError(f"{fields.where}: num_hidden_layers is {count}; give a number from 1 to {MAX_LAYERS}.")
    return int(count)


def groups(layers: Layer | Sequence[Layer], fields: Fields) -> tuple[Group, ...]:
    """The groups of a model whose layers are all alike, or are listed."""
    if isinstance(layers, Layer):
        return (Group(fields.get("num_hidden_layers", int), (layers,)),)
    return grouping.group(layers)
