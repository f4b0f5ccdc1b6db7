"""What the configurations of s1 share: the paper's recipe (`s1jax.config`'s defaults) on s1K."""

import ml_collections

from s1jax import config as config_lib


def on_s1k(preset: str) -> ml_collections.ConfigDict:
    """Fine-tunes the converted checkpoint runs/`preset`, in packed rows that cut nothing.

    A step takes 8 full rows, which hold about the paper's 16 sequences of s1K: 16 devices share them two by two with
    --config.mesh.sequence=2. For exactly 16 sequences a step give
    --config.train.batch_tokens=0 --config.train.batch_size=16; their number of rows is that of the longest step.
    """
    config = ml_collections.ConfigDict(config_lib.defaults())
    config.init_from = f"runs/{preset}"
    config.data.source = "s1k"
    config.data.block_size = 10240  # s1K's longest sequence has 9,109 ids by a count of its users
    config.data.batching = "packed"
    config.train.batch_size, config.train.batch_tokens = 0, 8 * 10240
    config.train.attention = "auto"
    return config
