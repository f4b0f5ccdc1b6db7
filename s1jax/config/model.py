"""The shape of a decoder: its layers (`s1jax.config.layers`) in groups, and what is around them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from s1jax.config import schema
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.rope import RopeScaling
from s1jax.config.schema import from_zero, require
from s1jax.errors import UserError

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that follow each other: `pattern`, `repeat` times. One `lax.scan` runs the repeats."""

    repeat: int
    pattern: tuple[Layer, ...]

    def __post_init__(self) -> None:
        require(self.repeat > 0, f"model.num_layers is {self.repeat}; it must be positive.")
        require(bool(self.pattern), "model.groups has a group without layers; give its pattern.")


class Stack(NamedTuple):
    """The layers of one position of a group's pattern, whose weights are stacked in the parameter tree.

    Attributes:
      name: of their weights in the tree.
      layer: the spec of each of them.
      numbers: which layers of the model they are, counted from 0.
    """

    name: str
    layer: Layer
    numbers: range


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder; every field but `family` changes the output or a shape.

    Published dense models are described by the flat form, see `dense`; it is what files of configs/ and flags use.

    Attributes:
      vocab_size: V, rows of the embedding; may exceed the tokenizer's ids.
      d_model: D.
      groups: the layers, in order.
      family: name of the architecture in Hugging Face's config.json (`model_type`), which an export writes; "" if no
        published architecture has these layers. See `s1jax.checkpoint.families`.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they change for long sequences; None: not at all.
      norm_eps: added to the mean square in RMSNorm.
      tied_embeddings: the output projection is the embedding.
      context_length: longest sequence, in tokens, that the decoder accepts.
      local_rope_theta: base of the rotary frequencies of layers with `local` rope, which are never scaled; 0: no layer
        has them.
      norm_offset: norms multiply by 1 + scale instead of scale (Gemma); their scales are 0 at the start.
      scale_embeddings: embeddings are multiplied by sqrt(D), rounded to their dtype (Gemma).
      final_softcap: logits z become final_softcap * tanh(z / final_softcap) (Gemma 2: 30); 0: they do not.
    """

    vocab_size: int
    d_model: int
    groups: tuple[Group, ...]
    family: str = ""
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    context_length: int = 32768
    local_rope_theta: float = 0.0
    norm_offset: bool = False
    scale_embeddings: bool = False
    final_softcap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "rope_theta", "norm_eps", "context_length"):
            value = getattr(self, name)
            require(value > 0, f"model.{name} is {value}; it must be positive.")
        from_zero("model.", self, "local_rope_theta", "final_softcap")
        require(bool(self.groups), "model.groups is empty; give at least one group of layers.")
        theta = self.rope_theta  # frequencies are float32
        require(1 <= theta <= 1e30, f"model.rope_theta is {theta}; it must lie in [1, 1e30].")
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn":
            require(theta > 1, f"model.rope_theta is {theta}; yarn needs more than 1.")
        self._check_rope()

    def _check_rope(self) -> None:
        """Checks what layers ask of the rotary settings."""
        rotated: dict[str, int] = {}
        original = 0 if self.rope_scaling is None else self.rope_scaling.original_context_length
        for attention in self._attentions():
            kind = attention.rope if isinstance(attention, GQA) else "global"
            local = kind == "local"
            require(
                kind == "none" or rotated.setdefault(kind, attention.rotated) == attention.rotated,
                f"model.groups has layers with {kind} rope that rotate different numbers of dimensions; s1jax needs "
                "them to be the same.",
            )
            require(
                bool(original) or not (isinstance(attention, GQA) and attention.position_scaling),
                "model.position_scaling needs the original_context_length of model.rope_scaling; give it.",
            )
            require(
                bool(self.local_rope_theta) or not local,
                "model.local_rope_theta is 0, but some layers have local rope; give its base.",
            )
            scaling = self.rope_scaling if kind == "global" else None
            if scaling is None or scaling.kind != "longrope":
                continue
            lengths = {len(scaling.short_factor), len(scaling.long_factor)}
            require(
                lengths == {attention.rotated // 2},
                f"model.rope_scaling has {len(scaling.short_factor)} short and {len(scaling.long_factor)} long ones; "
                f"give {attention.rotated // 2} of each, one for each rotary frequency.",
            )

    @classmethod
    def dense(cls, **fields: Any) -> ModelConfig:
        """A decoder whose layers are all alike, from the flat form.

        Args:
          **fields: `vocab_size`, `d_model`, `mlp_dim` (F), `num_layers` (L), `num_heads`, `num_kv_heads` and `head_dim`
            are required. `qkv_bias`, `qk_norm` and the other fields of `ModelConfig` have its defaults. Without
            `family`, a bias makes it `qwen2`, norms of queries and keys `qwen3`, neither `llama` and both "", as
            versions before `family` exported it.

        Raises:
          UserError: a value is out of range.
        """
        return _Flat(**fields).expand()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> ModelConfig:
        """Reads either form: with `groups`, as `schema.to_dict` writes it, or the flat one, see `dense`.

        Raises:
          UserError: names the setting that is unknown, missing, mistyped or out of range.
        """
        if "groups" in values:
            return schema.build(cls, values, where)
        return schema.build(_Flat, values, where).expand()

    def flat(self) -> dict[str, Any]:
        """The inverse of `dense`.

        Raises:
          UserError: the layers are not all alike, or have settings that the flat form does not have.
        """
        if not self.has_flat_form:
            raise UserError(
                "model.groups has layers that differ, or other layers than Qwen2, Qwen3 and Llama; such a model has no "
                "flat form."
            )
        layer = self.groups[0].pattern[0]
        values = {**vars(self), **vars(layer.attention), "num_layers": self.num_layers, "mlp_dim": layer.mlp.hidden}
        return {field.name: values[field.name] for field in dataclasses.fields(_Flat)}

    def stacks(self) -> list[Stack]:
        """All stacks, group by group."""
        return [stack for group in self.stacks_of_groups() for stack in group]

    def stacks_of_groups(self) -> list[list[Stack]]:
        """For every group, the stacks of its pattern.

        The first stack of a model is `layers`, which is the only one if all layers are alike. Position p of group g is
        `layers_g_p` otherwise.
        """
        found, first = [], 0
        for g, group in enumerate(self.groups):
            width, end = len(group.pattern), first + group.repeat * len(group.pattern)
            names = ["layers" if g == p == 0 else f"layers_{g}_{p}" for p in range(width)]
            numbers = [range(first + p, end, width) for p in range(width)]
            found.append([Stack(*one) for one in zip(names, group.pattern, numbers, strict=True)])
            first = end
        return found

    def layers(self) -> list[Layer]:
        """The spec of every layer, in order."""
        return [layer for group in self.groups for layer in group.pattern * group.repeat]

    @property
    def is_uniform(self) -> bool:
        """Whether all layers are alike."""
        return len(self._layers()) == 1

    @property
    def has_flat_form(self) -> bool:
        """Whether `flat` describes the model."""
        layer = self.groups[0].pattern[0]
        if not self.is_uniform or not isinstance(layer.attention, GQA) or not isinstance(layer.mlp, Dense):
            return False
        values = {**vars(self), **vars(layer.attention), "num_layers": self.num_layers, "mlp_dim": layer.mlp.hidden}
        plain = _Flat(**{field.name: values[field.name] for field in dataclasses.fields(_Flat)}).expand()
        return plain == dataclasses.replace(self, groups=plain.groups) and layer == plain.groups[0].pattern[0]

    @property
    def num_layers(self) -> int:
        """L."""
        return sum(group.repeat * len(group.pattern) for group in self.groups)

    @property
    def num_heads(self) -> int:
        """N of every layer."""
        return self._same({layer.attention.num_heads for layer in self._layers()}, "numbers of query heads")

    @property
    def num_kv_heads(self) -> int:
        """K of every layer's KV cache; with MLA, 1."""
        heads = {1 if isinstance(one, MLA) else one.num_kv_heads for one in self._attentions()}
        return self._same(heads, "numbers of key heads")

    @property
    def head_dim(self) -> int:
        """H of queries and keys of every layer; with MLA, before keys are taken from the cache's latent vectors."""
        return self._same({attention.head_dim for attention in self._attentions()}, "head dimensions")

    @property
    def cached_dims(self) -> tuple[int, int]:
        """Dimensions of a key and of a value of the KV cache; with MLA no values, they are a part of the keys."""
        dims = {
            (one.kv_rank + one.rope_dim, 0) if isinstance(one, MLA) else (one.head_dim, one.head_dim)
            for one in self._attentions()
        }
        return self._same(dims, "shapes of the KV cache")

    @property
    def mlp_dims(self) -> tuple[int, ...]:
        """The hidden widths F of dense MLPs, ascending; empty if all layers have experts."""
        return tuple(sorted({layer.mlp.hidden for layer in self._layers() if isinstance(layer.mlp, Dense)}))

    @property
    def experts(self) -> Experts | None:
        """The spec of the layers with experts, which is one; None: no layer has them."""
        specs = {layer.mlp for layer in self._layers() if isinstance(layer.mlp, Experts)}
        return self._same(specs, "kinds of experts") if specs else None

    @property
    def windows(self) -> dict[int, int]:
        """How many layers have which window; 0: those without one."""
        return dict(collections.Counter(getattr(layer.attention, "window", 0) for layer in self.layers()))

    @property
    def rope_depends_on_length(self) -> bool:
        """Whether sequences longer than the original context have other rotary frequencies than shorter ones."""
        scaling = self.rope_scaling
        return (
            scaling is not None
            and scaling.kind == "longrope"
            and scaling.short_factor != scaling.long_factor
            and self.context_length > scaling.original_context_length
        )

    def _layers(self) -> set[Layer]:
        """The different layers that there are."""
        return {layer for group in self.groups for layer in group.pattern}

    def _attentions(self) -> set[GQA | MLA]:
        return {layer.attention for layer in self._layers()}

    def _same(self, values: set[_T], what: str) -> _T:
        """The one value that all layers share."""
        if len(values) > 1:
            raise UserError(f"model.groups has layers with different {what}; s1jax needs them to be the same.")
        return next(iter(values))

    @property
    def num_params(self) -> int:
        """Number of weights, a tied embedding counted once."""
        layers = sum(layer.num_params(self.d_model) for layer in self.layers())
        return layers + self.d_model + self.vocab_size * self.d_model * (1 if self.tied_embeddings else 2)

    @property
    def active_params(self) -> int:
        """As `num_params`, with only those weights of experts that one token is multiplied with."""
        d = self.d_model
        return self.num_params - sum(layer.mlp.num_params(d) - layer.mlp.active_params(d) for layer in self.layers())


@dataclasses.dataclass(frozen=True)
class _Flat:
    """The flat form of a `ModelConfig`, see `ModelConfig.dense`."""

    vocab_size: int
    d_model: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    family: str = ModelConfig.family
    rope_theta: float = ModelConfig.rope_theta
    rope_scaling: RopeScaling | None = ModelConfig.rope_scaling
    norm_eps: float = ModelConfig.norm_eps
    qkv_bias: bool = GQA.qkv_bias
    qk_norm: bool = GQA.qk_norm
    tied_embeddings: bool = ModelConfig.tied_embeddings
    context_length: int = ModelConfig.context_length

    def expand(self) -> ModelConfig:
        """The same model as specs."""
        families = {(True, False): "qwen2", (False, True): "qwen3", (False, False): "llama", (True, True): ""}
        attention = GQA(self.num_heads, self.num_kv_heads, self.head_dim, self.qkv_bias, self.qk_norm)
        return ModelConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(Group(self.num_layers, (Layer(attention, Dense(self.mlp_dim)),)),),
            family=self.family or families[self.qkv_bias, self.qk_norm],
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            norm_eps=self.norm_eps,
            tied_embeddings=self.tied_embeddings,
            context_length=self.context_length,
        )


# Fields of the flat form that have a default.
FLAT_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(_Flat) if field.default is not dataclasses.MISSING
}
