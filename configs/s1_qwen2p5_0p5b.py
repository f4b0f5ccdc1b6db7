"""Qwen2.5-0.5B-Instruct fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-0.5B-Instruct --to=runs/qwen2p5_0p5b
    python -m launch.train --config=configs/s1_qwen2p5_0p5b.py --workdir=runs/s1_qwen2p5_0p5b

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_0p5b.py --model=qwen2p5_0p5b
--target=TARGET --config.train.accumulation=N --config.data.block_size=32768 --mfu=0.2` (jax 0.10.2; compiled ahead of
time, never run; 20 % is about what the paper's own run reached; every row counts as full, at the paper's block):

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     16              13.2 / 80         3771 (5144)                            100.1
    h100:8     2                4.3 / 80         471 (643)                               12.5
    h100:16    1                3.6 / 80         236 (322)                                6.3
    v5p:2x2x1  4                5.8 / 103        943 (1350)                              53.9
    v6e:2x2    4                5.8 / 34         943 (1350)                              27.0
"""

import ml_collections

from configs import recipe


def get_config() -> ml_collections.ConfigDict:
    return recipe.on_s1k("qwen2p5_0p5b")
