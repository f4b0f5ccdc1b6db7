"""Settings of a curation."""

from __future__ import annotations

import dataclasses
import math

from s1jax.errors import UserError

PRESETS = ("ours", "questions", "s1_paper", "s1_code")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a curation is asked for.

    Attributes:
      preset: one of `PRESETS`, see `s1jax.curation.presets`.
      size: rows to choose; 0 keeps all that pass the rules.
      seed: of the draws.
      skip: names of rules that are left out.
      traces: `gemini` or `deepseek`; whose thinking is used if a row of s1K-1.1 has both.
      templates: `keep` keeps questions that differ in their numbers alone, `one` keeps one of each template.
      tokenizer: counts the tokens of traces that come without a count; empty: none does.
      block_size: of a training run, to report how many rows are longer; 0: not reported.
      tokens_per_answer: what a teacher writes per question on average, for the plan; 0: measured from the rows that
        have an answer.
      dollars_per_million: price of a million tokens that a teacher writes, for the plan; 0: no dollars.
      only_right: also drop rows whose answer is wrong, by the column `correct`.
    """

    preset: str = "ours"
    size: int = 1000
    seed: int = 0
    skip: tuple[str, ...] = ()
    traces: str = "deepseek"
    templates: str = "keep"
    tokenizer: str = ""
    block_size: int = 0
    tokens_per_answer: float = 0.0
    dollars_per_million: float = 0.0
    only_right: bool = False

    @property
    def chooses_traces(self) -> bool:
        """Whether rows to train on are chosen; otherwise questions for a teacher."""
        return self.preset != "questions"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(f"--preset={self.preset} is not known; choose one of {', '.join(PRESETS)}.")
        if self.only_right and not self.chooses_traces:
            raise UserError("--only_right looks at answers, and --preset=questions chooses questions; leave one out.")
        if self.templates not in ("keep", "one"):
            raise UserError(f"--templates={self.templates} is not known; choose keep or one.")
        if self.traces not in ("gemini", "deepseek"):
            raise UserError(f"--traces={self.traces} is not known; choose gemini or deepseek.")
        for name in ("size", "block_size", "tokens_per_answer", "dollars_per_million"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"--{name}={value} is not a number of 0 or more; give such a one.")
