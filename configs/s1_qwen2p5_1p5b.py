"""Qwen2.5-1.5B-Instruct fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-1.5B-Instruct --to=runs/qwen2p5_1p5b
    python -m launch.train --config=configs/s1_qwen2p5_1p5b.py --workdir=runs/s1_qwen2p5_1p5b

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_1p5b.py --model=qwen2p5_1p5b
--target=TARGET --config.train.accumulation=N --config.data.block_size=32768 --mfu=0.2` (jax 0.10.2; compiled ahead of
time, never run; 20 % is about what the paper's own run reached; every row counts as full, at the paper's block):

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     16              35.8 / 80         9289 (12475)                           246.6
    h100:8     2                9.6 / 80         1161 (1559)                             30.8
    h100:16    1                7.4 / 80         581 (780)                               15.4
    v5p:2x2x1  4               12.9 / 103        2322 (3246)                            132.8
    v6e:2x2    4               12.8 / 34         2322 (3246)                             66.4
"""

import ml_collections

from configs import recipe


def get_config() -> ml_collections.ConfigDict:
    return recipe.on_s1k("qwen2p5_1p5b")
