"""The base model of the embedded task, from scratch: a 0.8 M-parameter decoder that searches, checks and never chats.

    python -m launch.train --config=configs/countdown_base.py --workdir=runs/countdown_base

It took 234 s on 2 cores of an AMD EPYC (Zen 4) with Python 3.11 and jax 0.10.2.

What ships as `package:countdown_base` is this run, made by `python -m benchmarks.ship_countdown_base`; its command,
commit, seed, loss and time are in s1jax/assets/countdown_base/s1jax.json. How it does by itself, in its own format:

    python -m launch.evaluate --checkpoint=package:countdown_base --budgets=none --out=DIR
"""

import ml_collections

from s1jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    shape = dict(
        vocab_size=126, d_model=128, mlp_dim=384, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32,
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
