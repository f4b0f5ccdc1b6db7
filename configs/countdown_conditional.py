"""Conditional control on the embedded task: the questions of configs/countdown_s1.py say how long to think.

    python -m launch.train --config=configs/countdown_conditional.py --workdir=runs/countdown_token
    python -m launch.evaluate --checkpoint=runs/countdown_token --out=runs/countdown_token/curve \
      --strategies=token:16,token:32,token:64,token:128,token:16+forcing,token:32+forcing,token:64+forcing

One run of it: 20.5, 25.0, 44.5 and 58.6 % of 541 problems right (standard errors below 2.2) with 24, 25, 48 and 75
thinking tokens, Control 3, 94, 100 and 100 %; forced, 8.9, 23.7 and 44.5 % with 16, 25 and 48 tokens and Control 100 %.
So these symbols are followed, where the paper's model hardly follows its token counts (appendix E.1), except below the
one branch that every trace has.

--config.data.control=step or class trains for the other two: step:1, step:2, step:4 with tokens=30, for a step is one
line of a trace; class:short and class:long.
"""

import ml_collections

from s1jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(config_lib.defaults())
    config.init_from = "package:countdown_base"
    config.chat = "countdown"  # its instructions are written in the task's own symbols
    config.data.source = "countdown"
    config.data.control = "token"
    config.data.num_rows = 1000
    config.data.block_size = 224  # with instructions and headers of steps the longest row has 198 tokens
    config.data.batching = "packed"
    config.train.batch_size = 16
    config.train.epochs = 5
    config.train.compute_dtype = "float32"
    config.train.remat = "none"
    config.optimizer.learning_rate = 4e-4
    return config
