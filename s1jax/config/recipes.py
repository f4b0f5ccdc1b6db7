"""The paper's recipe on s1K, shared by the configurations of published models."""

from __future__ import annotations

import ml_collections

from s1jax.config import experiment


def on_s1k(preset: str) -> ml_collections.ConfigDict:
    """Returns the settings that fine-tune the converted checkpoint runs/`preset` on packed rows without truncation.

    A step takes 8 full rows, which hold about the paper's 16 sequences of s1K. 16 devices share them two by two with
    --config.mesh.sequence=2. For exactly 16 sequences a step give
    --config.train.batch_tokens=0 --config.train.batch_size=16; the number of rows is then that of the longest step.
    """
    config = ml_collections.ConfigDict(experiment.defaults())
    config.init_from = f"runs/{preset}"
    config.data.source = "s1k"
    config.data.block_size = 10240  # s1K's longest sequence has 9,109 tokens by a count of its users
    config.data.batching = "packed"
    config.train.batch_size, config.train.batch_tokens = 0, 8 * 10240
    config.train.attention = "auto"
    return config


def adapters_on_s1k(preset: str) -> ml_collections.ConfigDict:
    """Returns the settings that train adapters of rank 16 on that checkpoint in nf4, one row at a time on one device.

    The learning rate is ten times that of training all weights, as `docs/lora.md` says.
    """
    config = on_s1k(preset)
    config.lora.rank, config.lora.alpha, config.lora.base = 16, 32.0, "nf4"
    config.optimizer.learning_rate = 1e-4
    config.train.accumulation = 8
    return config
