"""The shapes that a check runs with: those of real models on an accelerator, tiny ones on a CPU."""

from __future__ import annotations

import dataclasses

from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of all checks.

    Attributes:
      rows: B of the attention kernels.
      length: T of the attention kernels, tokens.
      heads: query heads N.
      kv_heads: key/value heads K.
      head_dim: H.
      dtype: of queries, keys and values.
      page_size: tokens of a page.
      pages: pages of a sequence.
      copied_bytes: of the array that measures the memory's bandwidth.
      product: rows and columns of the matrices that measure the peak of products.
      models: name -> model of the train steps; the first one decodes as well.
      train: (length of a row, rows of a step) of the train steps.
      batches: sequences that decode at one time.
      prompt: tokens of a prompt.
      new_tokens: tokens decoded after it.
      problems: prompts of the comparison with the CPU.
    """

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    page_size: int
    pages: int
    copied_bytes: int
    product: int
    models: dict[str, ModelConfig]
    train: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    prompt: int
    new_tokens: int
    problems: int


def real() -> Sizes:
    """For accelerators: the heads of Qwen2.5-1.5B, train steps of 32,768 tokens."""
    return Sizes(
        rows=2, length=4096, heads=12, kv_heads=2, head_dim=128, dtype="bfloat16", page_size=64, pages=64,
        copied_bytes=1 << 30, product=8192,
        models={"Qwen2.5-1.5B": PRESETS["qwen2p5_1p5b"], "Qwen2.5-3B": PRESETS["qwen2p5_3b"]},
        train=((8192, 4), (32768, 1)), batches=(1, 64), prompt=128, new_tokens=128, problems=32,
    )  # fmt: skip


def tiny() -> Sizes:
    """For CPUs: the same checks in seconds. The figures say nothing about a model."""
    model = ModelConfig.dense(**PRESETS["qwen2p5_0p5b"].flat() | _TINY)
    return Sizes(
        rows=2, length=48, heads=4, kv_heads=2, head_dim=16, dtype="float32", page_size=16, pages=3,
        copied_bytes=1 << 24, product=256, models={"tiny": model}, train=((64, 2),), batches=(1, 4), prompt=8,
        new_tokens=100, problems=2,
    )  # fmt: skip


_TINY = {
    "vocab_size": 128, "d_model": 32, "mlp_dim": 64, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
    "context_length": 512,
}  # fmt: skip
