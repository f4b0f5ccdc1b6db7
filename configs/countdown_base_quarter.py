"""A base model of the embedded task with a quarter of the weights, 0.2 M: the student of `s1jax curation_story`.

    python -m launch.train --config=configs/countdown_base_quarter.py --workdir=runs/countdown_base_quarter

Text, steps and rates are those of configs/countdown_base.py; the layers are as many and half as wide.
"""

import ml_collections

from s1jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    shape = dict(
        vocab_size=126, d_model=64, mlp_dim=192, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=32,
        rope_theta=1e4, qkv_bias=True, tied_embeddings=True, context_length=1024,
    )  # fmt: skip
    config = ml_collections.ConfigDict(config_lib.defaults(shape))
    config.tokenizer = "package:countdown_tokenizer"
    config.chat = "countdown_base"
    config.data.source = "countdown_corpus"
    config.data.block_size = 384
    config.data.weighting = "token"
    config.train.steps = 1000
    config.train.batch_size = 8
    config.train.compute_dtype = "float32"
    config.train.remat = "none"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "linear"
    config.checkpoint.every = 200
    return config
