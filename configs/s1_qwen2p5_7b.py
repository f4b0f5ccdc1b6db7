"""Qwen2.5-7B-Instruct fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-7B-Instruct --to=runs/qwen2p5_7b
    python -m launch.train --config=configs/s1_qwen2p5_7b.py --workdir=runs/s1_qwen2p5_7b

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_7b.py --model=qwen2p5_7b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; padding counts as work). Rows with data.batching=padded were planned so, at the
paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     1               65.5 / 80         498 (677)                              104.6  train.batch_tokens=10240  train.param_dtype=bfloat16  optimizer.moment_dtype=bfloat16
    h100:8     1               18.0 / 80         498 (646)                               13.2
    h100:16    1                9.2 / 80         249 (323)                                6.6  mesh.sequence=2
    v5p:2x2x4  1               19.5 / 103        2037 (2737)                            116.5  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v6e:4x4    1               19.5 / 34         2037 (2737)                             58.2  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
"""  # noqa: E501, a row of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.on_s1k("qwen2p5_7b")
