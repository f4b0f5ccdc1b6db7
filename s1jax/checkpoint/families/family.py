"""What distinguishes one published architecture from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from s1jax.config.layers import GQA
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture as Hugging Face and llama.cpp know it.

    Tensor names are those of `s1jax.checkpoint.names`, which has the tensors of all families.

    Attributes:
      model_type: in config.json, `general.architecture` of a GGUF file and `ModelConfig.family`.
      architecture: in config.json.
      silent: what transformers assumes for keys that config.json does not have.
      qkv_bias: query, key and value projections have a bias.
      qk_norm: queries and keys are normalised.
      interleaved_in_gguf: llama.cpp stores the two halves of a rotation side by side.
      whole_heads: transformers accepts a `hidden_size` only if it is a multiple of `num_attention_heads`.
    """

    model_type: str
    architecture: str
    silent: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False
    interleaved_in_gguf: bool = False
    whole_heads: bool = False

    def check_export(self, config: ModelConfig, attention: GQA) -> None:
        """Checks that this family has such a model.

        Args:
          config: of the model.
          attention: of each of its layers.

        Raises:
          UserError: it does not.
        """
        for name in ("qkv_bias", "qk_norm"):
            ours, theirs = getattr(attention, name), getattr(self, name)
            if ours != theirs:
                raise UserError(
                    f"model.family is {self.model_type!r}, which has {name} {theirs}, and this model has {ours}; set "
                    "model.family to the architecture that has it. The model cannot be exported."
                )
        if self.whole_heads and config.d_model % attention.num_heads:
            raise UserError(
                f"d_model {config.d_model} is not a multiple of num_heads {attention.num_heads}, which transformers "
                f"requires of a {self.architecture.removesuffix('ForCausalLM')}; the model cannot be exported."
            )
