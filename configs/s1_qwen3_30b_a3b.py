"""Qwen3-30B-A3B, a mixture of 128 experts, fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen3-30B-A3B --to=runs/qwen3_30b_a3b --chat=think
    python -m launch.train --config=configs/s1_qwen3_30b_a3b.py --workdir=runs/s1_qwen3_30b_a3b

Planned with `python -m launch.plan --config=configs/s1_qwen3_30b_a3b.py --model=qwen3_30b_a3b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; experts are
taken to get equally many tokens; padding counts as work), at the paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:16    1               60.2 / 80         1865 (2231)                             49.5  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v5p:2x2x4  1               80.4 / 103        1865 (2321)                            106.6  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16  train.remat=save_projections
"""  # noqa: E501, a row of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.on_s1k("qwen3_30b_a3b")
    config.train.remat = "save_attention,save_projections:6"
    return config
