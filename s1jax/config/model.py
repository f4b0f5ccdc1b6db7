"""The shape of a decoder: what a checkpoint needs besides its weights.

Axis letters used all over s1jax: B batch, T query length, S key length, D model, F mlp, N query heads, K key/value
heads, H head dimension, L layers, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from s1jax.config.schema import at_least, from_zero, require


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for rows longer than those of the first training (`s1jax.model.rope`).

    Names and formulas as in Hugging Face's `rope_scaling`.

    Attributes:
      kind: `linear` divides all frequencies by the factor; `llama3` (Llama 3.1 and later) and `yarn` (Peng et al. 2023)
        the low ones, and change those between gradually.
      factor: by which low frequencies are divided, at least 1.
      original_context_length: longest row of the first training, in tokens; `llama3` and `yarn` need it.
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
class ModelConfig:
    """Shape of one decoder of the Qwen2/2.5, Qwen3 or Llama family; every field changes the output or a shape.

    Attributes:
      vocab_size: V, rows of the embedding; may exceed the tokenizer's ids.
      d_model: D.
      mlp_dim: F, hidden width of SwiGLU.
      num_layers: L.
      num_heads: N, query heads.
      num_kv_heads: K, key/value heads; divides N.
      head_dim: H, even.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are changed for long rows; None: not at all.
      norm_eps: added to the mean square in RMSNorm.
      qkv_bias: query, key and value projections have a bias (Qwen2).
      qk_norm: RMSNorm over H of queries and keys before RoPE (Qwen3).
      tied_embeddings: the output projection is the embedding.
      context_length: longest sequence, in tokens, that the decoder accepts.
    """

    vocab_size: int
    d_model: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    context_length: int = 32768

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                require(value > 0, f"model.{field.name} is {value}; it must be positive.")
        whole = self.num_heads % self.num_kv_heads == 0
        require(whole, f"model.num_heads {self.num_heads} is no multiple of model.num_kv_heads {self.num_kv_heads}.")
        require(self.head_dim % 2 == 0, f"model.head_dim {self.head_dim} must be even for rotary embeddings.")
        theta = self.rope_theta  # frequencies are float32
        require(1 <= theta <= 1e30, f"model.rope_theta is {theta}; it must lie in [1, 1e30].")
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn":
            require(theta > 1, f"model.rope_theta is {theta}; yarn needs more than 1.")

    @property
    def num_params(self) -> int:
        """Number of weights, a tied embedding counted once."""
        d, h, n, k = self.d_model, self.head_dim, self.num_heads, self.num_kv_heads
        attention = 2 * d * n * h + 2 * d * k * h
        attention += (n + 2 * k) * h * self.qkv_bias + 2 * h * self.qk_norm
        layer = attention + 3 * d * self.mlp_dim + 2 * d
        return self.num_layers * layer + d + self.vocab_size * d * (1 if self.tied_embeddings else 2)
