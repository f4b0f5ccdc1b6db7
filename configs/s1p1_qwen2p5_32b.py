"""Qwen2.5-32B-Instruct fine-tuned on s1K-1.1 (DeepSeek-R1's traces, blocks of 20,000) with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-32B-Instruct --to=runs/qwen2p5_32b
    python -m launch.train --config=configs/s1p1_qwen2p5_32b.py --workdir=runs/s1p1_qwen2p5_32b

Planned with `python -m launch.plan --config=configs/s1p1_qwen2p5_32b.py --model=qwen2p5_32b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; every row counts as full):

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:8     2               61.3 / 80         9249 (11812)                           245.5  train.mlp_parts=4  train.param_dtype=bfloat16  optimizer.moment_dtype=bfloat16
    h100:16    1               49.0 / 80         4625 (5906)                            122.7
    v5p:2x2x4  1               49.2 / 103        4625 (6063)                            264.5
    v6e:8x8    1               12.8 / 34         1156 (1516)                             33.1  mesh.sequence=4

One H100 does not hold it: weights and moments alone take 6 bytes a weight, in bfloat16.
"""  # noqa: E501, a row of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.on_s1k("qwen2p5_32b")
    config.data.source = "s1k_1_1"
    config.data.block_size = 20000
    config.data.batching = "padded"  # as planned: how many tokens these rows have is not known here
    config.train.batch_size, config.train.batch_tokens = 16, 0
    return config
