"""What the configurations of s1 share: the paper's recipe (`s1jax.config`'s defaults) on s1K."""

import ml_collections

from s1jax import config as config_lib


def on_s1k(preset: str) -> ml_collections.ConfigDict:
    """Fine-tunes the converted checkpoint runs/`preset`, in blocks that cut nothing."""
    config = ml_collections.ConfigDict(config_lib.defaults())
    config.init_from = f"runs/{preset}"
    config.data.source = "s1k"
    config.data.block_size = 10240  # s1K's longest sequence has 9,109 ids by a count of its users
    config.train.attention = "auto"
    return config
