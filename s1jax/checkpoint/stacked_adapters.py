"""PEFT's adapters of experts on transformers 5, where two arrays hold the experts of a layer.

    model.layers.{}.mlp.experts.base_layer.lora_A.weight   [E R, inputs]   of one array
    model.layers.{}.mlp.experts.base_layer.lora_B.weight   [outputs, R E]
    model.layers.{}.mlp.experts.lora_A.weight, lora_B      of the other one, or of the only one that has an adapter

The arrays are `gate_up_proj`, whose outputs are ours of gate and up, and `down_proj`. The names do not say which one is
meant; the shapes do.

Axis letters: E experts, R rank, D model, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from s1jax.checkpoint.families import table
from s1jax.config.layers import Experts
from s1jax.config.model import ModelConfig


class Stacked(NamedTuple):
    """The adapter of one array of a layer's experts.

    Attributes:
      names: of A and B in the file.
      module: what PEFT calls the array.
      projections: ours that the array holds.
      alternating: they take turns along its outputs, instead of following each other.
      stack: of our tree.
      layer: which of its layers.
      experts: E.
      rank: R.
    """

    names: tuple[str, str]
    module: str
    projections: tuple[str, ...]
    alternating: bool
    stack: str
    layer: int
    experts: int
    rank: int


def find(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, prefix: str) -> list[Stacked]:
    """Such adapters of a file.

    Args:
      shapes: name -> shape of its tensors.
      config: of the model.
      prefix: of all names.
    """
    alternating = any(row.alternating for row in table.rows(config) if row.path == "mlp/experts/gate/kernel")
    found = []
    for stack in config.stacks():
        spec = stack.layer.mlp
        if not isinstance(spec, Experts):
            continue
        arrays = {
            (config.d_model, 2 * spec.hidden): ("gate_up_proj", ("gate", "up")),
            (spec.hidden, config.d_model): ("down_proj", ("down",)),
        }
        for layer, number in enumerate(stack.numbers):
            module = f"model.layers.{number}.mlp.experts"
            for inner in (".base_layer", ""):
                names = (f"{prefix}{module}{inner}.lora_A.weight", f"{prefix}{module}{inner}.lora_B.weight")
                a, b = (shapes.get(name, ()) for name in names)
                if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] % spec.num_experts or (a[1], b[0]) not in arrays:
                    continue
                name, ours = arrays[a[1], b[0]]
                found.append(
                    Stacked(
                        names,
                        f"{module}.{name}",
                        ours,
                        alternating and len(ours) > 1,
                        stack.name,
                        layer,
                        spec.num_experts,
                        a[0] // spec.num_experts,
                    )
                )
    return found


def fill(tree: Mapping[str, Any], one: Stacked, a: np.ndarray, b: np.ndarray) -> None:
    """Puts an adapter into the tree of `s1jax.model.adapters`, whose rank may be larger.

    Args:
      tree: of numpy arrays.
      one: of `find`.
      a: float32, as the file has it.
      b: likewise.
    """
    wide = a.reshape(one.experts, one.rank, -1).swapaxes(1, 2)  # [E, inputs, R]
    back = b.reshape(-1, one.rank, one.experts).transpose(2, 1, 0)  # [E, R, outputs]
    parts: Sequence[np.ndarray] = np.split(back, len(one.projections), axis=-1)
    if one.alternating:
        parts = [back[..., i :: len(one.projections)] for i in range(len(one.projections))]
    for projection, part in zip(one.projections, parts, strict=True):
        node = tree[one.stack]["mlp"]["experts"][projection]
        node["a"][one.layer, ..., : one.rank] = wide
        node["b"][one.layer, :, : one.rank] = part
