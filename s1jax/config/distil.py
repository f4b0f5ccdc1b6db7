"""Settings of logit distillation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from s1jax.config.sampling import SamplingParams
from s1jax.config.schema import require
from s1jax.errors import UserError

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl"]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How a student samples the rows of an on-policy step; see `s1jax.config.sampling.SamplingParams`.

    Attributes:
      max_thinking_tokens: thinking is cut here.
      min_thinking_tokens: an earlier end of thinking is replaced by the wait string.
      num_waits: ends of thinking beyond the minimum that are replaced by the wait string.
      max_answer_tokens: sampled ids of the answer, its stop id included.
      temperature: 0 is greedy.
      top_p: smallest set of ids with at least this probability.
      top_k: the k most probable ids; 0: all.
      wait: string that replaces an end of thinking.
    """

    max_thinking_tokens: int = 1024
    min_thinking_tokens: int = 0
    num_waits: int = 0
    max_answer_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    wait: str = "Wait"

    def __post_init__(self) -> None:
        try:
            SamplingParams(**dataclasses.asdict(self))
        except UserError as error:
            raise UserError(f"distil.rollout.{error}") from error


@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """Logit distillation: the student learns a teacher's distribution over the next token, not only the rows' tokens.

    Attributes:
      teacher: checkpoint of a model with the same tokenizer, or `package:NAME`. It runs in every step beside the
        student, sharded over the same mesh, in train.compute_dtype. Empty: none.
      targets: folder of `s1jax teacher_logits`, which has the teacher's targets of all training rows: its most probable
        ids with the rest, or counts of draws. The loss is their forward KL at temperature 1, see
        `s1jax.training.losses.sparse_distillation`. Empty: none. Without it and without `teacher`: no distillation.
      loss: `forward_kl`, `reverse_kl`, `jsd` (between the two, see `beta`), `skewed_kl` or `skewed_reverse_kl` (see
        `alpha`); formulas and sources are in `s1jax.training.losses.distillation`.
      beta: of `jsd`: the teacher's share of the mixture, from 0 (forward KL) to 1 (reverse KL).
      alpha: of `skewed_kl`: the teacher's share of the mixture; of `skewed_reverse_kl`: the student's.
      weight: share of the distillation loss; cross-entropy has the rest. 0: plain training, without the teacher.
      temperature: divides the logits of both; the distillation loss is multiplied by its square.
      on_policy: share of the steps, spread evenly, whose rows are the prompts of the data with answers that the student
        samples; 1: all. The loss of these steps is `on_policy_loss` alone, on the sampled ids; it needs `teacher`.
      on_policy_loss: as `loss`, with the same `beta`, `alpha` and `temperature`.
      rollout: how the answers are sampled.
    """

    teacher: str = ""
    targets: str = ""
    loss: Divergence = "forward_kl"
    beta: float = 0.5
    alpha: float = 0.1
    weight: float = 0.5
    temperature: float = 1.0
    on_policy: float = 0.0
    on_policy_loss: Divergence = "reverse_kl"
    rollout: RolloutConfig = RolloutConfig()

    def __post_init__(self) -> None:
        require(
            not self.on_policy or bool(self.teacher and self.weight),
            f"distil.on_policy is {self.on_policy}, and no teacher scores what the student samples; give distil.teacher"
            " with a distil.weight above 0, or set it to 0.",
        )
        require(
            not (self.teacher and self.targets),
            f"distil.teacher is {self.teacher} and distil.targets is {self.targets}; give one of them: a teacher that"
            " runs beside the student, or what it gave before.",
        )
        for name in ("beta", "weight", "on_policy"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"distil.{name} is {value}; give a share from 0 to 1.")
        require(
            0 < self.alpha < 1,
            f"distil.alpha is {self.alpha}; give a share between 0 and 1, such as 0.1 (without the skew distil.loss is"
            " forward_kl or reverse_kl).",
        )
        require(0 < self.temperature < math.inf, f"distil.temperature is {self.temperature}; give a positive number.")


DEFAULT = DistilConfig()


def say_unused(distil: DistilConfig, say: Callable[[Any, str, str, str], None]) -> None:
    """Calls `say` for the settings of a distillation that have no effect."""
    if not distil.on_policy:
        say(distil, "on_policy_loss", "distil.", "config.distil.on_policy is 0")
        for field in dataclasses.fields(RolloutConfig):
            say(distil.rollout, field.name, "distil.rollout.", "config.distil.on_policy is 0")
    if not distil.teacher and not distil.targets:
        for name in ("loss", "beta", "alpha", "weight", "temperature"):
            say(distil, name, "distil.", "config.distil.teacher and config.distil.targets are empty")
        return
    if distil.targets:
        for name in ("loss", "beta", "alpha", "temperature"):
            say(distil, name, "distil.", "the loss of config.distil.targets is the forward KL at temperature 1")
    if not distil.weight:
        for name in ("teacher", "targets", *(() if distil.targets else ("loss", "beta", "alpha", "temperature"))):
            say(distil, name, "distil.", "config.distil.weight=0 is plain training")
        return
    if distil.targets:
        return
    if distil.on_policy == 1:
        for name in ("loss", "weight"):
            say(distil, name, "distil.", "config.distil.on_policy=1 leaves no step with the tokens of the rows")
    losses = [distil.loss] * (distil.on_policy < 1) + [distil.on_policy_loss] * (distil.on_policy > 0)
    named = " and ".join(losses)
    if "jsd" not in losses:
        say(distil, "beta", "distil.", f"{named} has none")
    if not any(loss.startswith("skewed") for loss in losses):
        say(distil, "alpha", "distil.", f"{named} has none")
