"""How rotary frequencies change for long sequences."""

from __future__ import annotations

import dataclasses
from typing import Literal

from s1jax.config.schema import at_least, from_zero, require


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies change for sequences longer than those of pretraining (`s1jax.model.rope`).

    Names and formulas are those of Hugging Face's `rope_scaling`.

    Attributes:
      kind: `linear` divides all frequencies by the factor; `llama3` (Llama 3.1 and later) and `yarn` (Peng et al. 2023)
        the low ones, and change those between gradually; `longrope` (Phi) divides each by a factor of its own.
      factor: by which low frequencies are divided, at least 1.
      original_context_length: longest sequence of pretraining, in tokens; all kinds but `linear` need it.
      low_freq_factor: `llama3`: wavelengths above original_context_length / low_freq_factor are low frequencies.
      high_freq_factor: `llama3`: those below original_context_length / high_freq_factor are kept.
      beta_fast: `yarn`: dimensions with more rotations than this in the original context are kept.
      beta_slow: `yarn`: those with fewer than this are divided.
      truncate: `yarn`: the two borders are rounded outwards to whole dimensions.
      attention_factor: `yarn` and `longrope`: cosines and sines are multiplied by it. None, `yarn`: 0.1 ln(factor) + 1,
        or with both scales below (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1). None, `longrope`:
        sqrt(1 + ln(factor) / ln(original_context_length)).
      mscale: `yarn`; 0: not given.
      mscale_all_dim: `yarn`; 0: not given. `MLA` also multiplies its scores by (0.1 mscale_all_dim ln(factor) + 1)**2.
      short_factor: `longrope`: divisors of the frequencies for sequences of up to original_context_length tokens.
      long_factor: `longrope`: divisors for longer ones.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    original_context_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = "model.rope_scaling."
        require(1 <= self.factor <= 2**20, f"{where}factor is {self.factor}; give a number from 1 to 2**20.")
        original = self.original_context_length
        require(original < 2**31, f"{where}original_context_length is {original}; give less than 2**31.")
        least = {"linear": 0, "longrope": 2}  # its logarithm is a divisor
        at_least(least.get(self.kind, 1), where, self, "original_context_length")
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
        from_zero(where, self, "mscale", "mscale_all_dim")
        given = self.short_factor, self.long_factor
        for name, factors in zip(("short_factor", "long_factor"), given, strict=True):
            require(
                bool(factors) == (self.kind == "longrope"),
                f"{where}{name} has {len(factors)} numbers; only longrope has one for each rotary frequency.",
            )
            require(
                all(2**-20 <= factor <= 2**20 for factor in factors),
                f"{where}{name} has a number outside of [2**-20, 2**20]; get the configuration again.",
            )
