"""Qwen2.5-14B-Instruct fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-14B-Instruct --to=runs/qwen2p5_14b
    python -m launch.train --config=configs/s1_qwen2p5_14b.py --workdir=runs/s1_qwen2p5_14b

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_14b.py --model=qwen2p5_14b
--target=TARGET --config.train.accumulation=N --config.data.block_size=32768 --mfu=0.2` (jax 0.10.2; compiled ahead of
time, never run; 20 % is about what the paper's own run reached; every row counts as full, at the paper's block):

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:8     2               56.8 / 80         8668 (11538)                           230.1
    h100:16    1               35.9 / 80         4334 (5769)                            115.0
    v5p:2x2x4  1               35.4 / 103        4334 (5950)                            247.9
    v6e:4x8    1               18.2 / 34         2167 (2975)                             62.0  mesh.sequence=2

One H100 does not hold it: weights and moments alone take 6 bytes a weight, in bfloat16.
"""

import ml_collections

from configs import recipe


def get_config() -> ml_collections.ConfigDict:
    return recipe.on_s1k("qwen2p5_14b")
