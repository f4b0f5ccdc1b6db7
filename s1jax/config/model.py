"""The shape of a decoder as specs: an attention and an MLP for every layer, and layers in groups.

Axis letters used all over s1jax: B batch, T query length, S key length, D model, F mlp, N query heads, K key/value
heads, H head dimension, L layers, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from s1jax.config import schema
from s1jax.config.schema import at_least, from_zero, require
from s1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies change for sequences longer than those of pretraining (`s1jax.model.rope`).

    Names and formulas are those of Hugging Face's `rope_scaling`.

    Attributes:
      kind: `linear` divides all frequencies by the factor; `llama3` (Llama 3.1 and later) and `yarn` (Peng et al. 2023)
        the low ones, and change those between gradually.
      factor: by which low frequencies are divided, at least 1.
      original_context_length: longest sequence of pretraining, in tokens; `llama3` and `yarn` need it.
      low_freq_factor: `llama3`: wavelengths above original_context_length / low_freq_factor are low frequencies.
      high_freq_factor: `llama3`: those below original_context_length / high_freq_factor are kept.
      beta_fast: `yarn`: dimensions with more rotations than this in the original context are kept.
      beta_slow: `yarn`: those with fewer than this are divided.
      truncate: `yarn`: the two borders are rounded outwards to whole dimensions.
      attention_factor: `yarn`: cosines and sines are multiplied by it; None: 0.1 ln(factor) + 1.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        where = "model.rope_scaling."
        require(1 <= self.factor <= 2**20, f"{where}factor is {self.factor}; give a number from 1 to 2**20.")
        original = self.original_context_length
        require(original < 2**31, f"{where}original_context_length is {original}; give less than 2**31.")
        at_least(0 if self.kind == "linear" else 1, where, self, "original_context_length")
        from_zero(where, self, "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            require(
                2**-20 <= getattr(self, low) < getattr(self, high) <= 2**20,
                f"{where}{low} is {getattr(self, low)} and {high} {getattr(self, high)}; the first must be positive "
                "and the smaller, both at most 2**20.",
            )
        of_cosines = self.attention_factor
        require(
            of_cosines is None or 0 < of_cosines <= 2**20,
            f"{where}attention_factor is {of_cosines}; give a positive number of at most 2**20.",
        )


@dataclasses.dataclass(frozen=True)
class GQA:
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions.

    Attributes:
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads; divides N.
      head_dim: H, even.
      qkv_bias: query, key and value projections have a bias (Qwen2).
      qk_norm: RMSNorm over H of queries and keys before RoPE (Qwen3).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        at_least(1, "model.", self, "num_heads", "num_kv_heads", "head_dim")
        whole = self.num_heads % self.num_kv_heads == 0
        require(whole, f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}.")
        require(self.head_dim % 2 == 0, f"model.head_dim {self.head_dim} must be even for rotary embeddings.")

    def num_params(self, d_model: int) -> int:
        """Number of weights of one layer's attention, its norms of queries and keys included."""
        n, k, h = self.num_heads, self.num_kv_heads, self.head_dim
        kernels = 2 * d_model * n * h + 2 * d_model * k * h
        return kernels + (n + 2 * k) * h * self.qkv_bias + 2 * h * self.qk_norm


@dataclasses.dataclass(frozen=True)
class Dense:
    """Gated MLP with SiLU (SwiGLU, Shazeer 2020).

    Attributes:
      hidden: F, its hidden width.
    """

    hidden: int

    def __post_init__(self) -> None:
        require(self.hidden > 0, f"model.mlp_dim is {self.hidden}; it must be positive.")

    def num_params(self, d_model: int) -> int:
        """Number of weights of one layer's MLP."""
        return 3 * d_model * self.hidden


@dataclasses.dataclass(frozen=True)
class Layer:
    """One pre-norm decoder layer."""

    attention: GQA
    mlp: Dense


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

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                require(value > 0, f"model.{field.name} is {value}; it must be positive.")
        require(bool(self.groups), "model.groups is empty; give at least one group of layers.")
        theta = self.rope_theta  # frequencies are float32
        require(1 <= theta <= 1e30, f"model.rope_theta is {theta}; it must lie in [1, 1e30].")
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn":
            require(theta > 1, f"model.rope_theta is {theta}; yarn needs more than 1.")

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
          UserError: the layers are not all alike.
        """
        if not self.is_uniform:
            raise UserError("model.groups has layers that differ; such a model has no flat form.")
        layer = self.groups[0].pattern[0]
        rest = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "groups"}
        attention = {field.name: getattr(layer.attention, field.name) for field in dataclasses.fields(layer.attention)}
        return {**rest, "num_layers": self.num_layers, "mlp_dim": layer.mlp.hidden, **attention}

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
        """Whether all layers are alike, so that the model has a flat form."""
        return len({layer for group in self.groups for layer in group.pattern}) == 1

    @property
    def num_layers(self) -> int:
        """L."""
        return sum(group.repeat * len(group.pattern) for group in self.groups)

    @property
    def num_heads(self) -> int:
        """N of every layer."""
        return self._attention().num_heads

    @property
    def num_kv_heads(self) -> int:
        """K of every layer."""
        return self._attention().num_kv_heads

    @property
    def head_dim(self) -> int:
        """H of every layer."""
        return self._attention().head_dim

    @property
    def mlp_dim(self) -> int:
        """F of every layer."""
        specs = {layer.mlp for group in self.groups for layer in group.pattern}
        if len(specs) > 1:
            raise UserError("model.groups has MLPs that differ; this computation needs one kind of MLP.")
        return specs.pop().hidden

    def _attention(self) -> GQA:
        """The attention that all layers have."""
        specs = {layer.attention for group in self.groups for layer in group.pattern}
        if len(specs) > 1:
            raise UserError("model.groups has attentions that differ; the KV cache needs one kind of attention.")
        return specs.pop()

    @property
    def num_params(self) -> int:
        """Number of weights, a tied embedding counted once."""
        d = self.d_model
        layers = sum(
            group.repeat * (layer.attention.num_params(d) + layer.mlp.num_params(d) + 2 * d)
            for group in self.groups
            for layer in group.pattern
        )
        return layers + d + self.vocab_size * d * (1 if self.tied_embeddings else 2)


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
