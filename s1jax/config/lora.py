"""Settings of training with adapters of low rank (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from s1jax.config.schema import require

# PEFT's names of the projections that may have adapters -> their names in the parameter tree.
TARGETS: dict[str, tuple[str, ...]] = {
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "o_proj": ("out",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "q_a_proj": ("query_down",),
    "q_b_proj": ("query_up",),
    "kv_a_proj_with_mqa": ("latent",),
    "kv_b_proj": ("key_up", "value_up"),
}
ALL = "all-linear"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters that are trained in place of the weights: y = W x + scale * B A x, with W frozen.

    Attributes:
      rank: r, rows of A and columns of B; 0: no adapters, the weights are trained.
      alpha: scale is alpha / rank.
      targets: projections that get an adapter, by PEFT's names with commas between them, such as `q_proj,v_proj`.
        `all-linear` takes every projection of the layers, those of experts included; routers, embeddings and the output
        projection never have one.
      rslora: scale is alpha / sqrt(rank) (Kalajdzievski 2023).
      base: how the frozen weights are held. `int8`, `nf4` (QLoRA, Dettmers et al. 2023) and `fp8` are of the
        projections, `mxfp4` of those of experts; the other weights are in train.compute_dtype then.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: str = ALL
    rslora: bool = False
    base: Literal["bfloat16", "float32", "int8", "nf4", "mxfp4", "fp8"] = "bfloat16"

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"lora.rank is {self.rank}; give a positive rank, or 0 for no adapters.")
        unknown = sorted(set(self.names()) - set(TARGETS))
        require(
            not unknown,
            f"lora.targets has {(unknown or [''])[0]!r}; choose from {', '.join(TARGETS)}, with commas between them, or"
            f" {ALL}.",
        )
        require(0 < self.alpha < math.inf, f"lora.alpha is {self.alpha}; give a positive number.")
        if self.rank:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(
                value == field.default,
                f"lora.{field.name} is {value!r}, and lora.rank is 0, which means no adapters; give a rank such as 16,"
                f" or leave lora.{field.name} out.",
            )

    def names(self) -> tuple[str, ...]:
        """The targets, one by one."""
        return tuple(TARGETS) if self.targets == ALL else tuple(name.strip() for name in self.targets.split(","))

    def projections(self) -> frozenset[str]:
        """Names in the parameter tree of the projections that get an adapter."""
        return frozenset(name for target in self.names() for name in TARGETS[target])

    @property
    def scale(self) -> float:
        """What B A x is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def quantized(self) -> bool:
        """Whether the frozen projections are held in fewer bits than they are computed with."""
        return self.base not in ("bfloat16", "float32")


OFF = LoraConfig()
