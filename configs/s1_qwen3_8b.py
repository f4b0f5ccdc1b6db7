"""Qwen3-8B fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen3-8B --to=runs/qwen3_8b --chat=think
    python -m launch.train --config=configs/s1_qwen3_8b.py --workdir=runs/s1_qwen3_8b

Planned with `python -m launch.plan --config=configs/s1_qwen3_8b.py --model=qwen3_8b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; padding counts as work). Rows with data.batching=padded were planned so, at the
paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     1               79.3 / 80         2438 (3249)                            1027.1  train.batch_size=1  train.param_dtype=bfloat16  optimizer.moment_dtype=bfloat16  train.mlp_parts=4  data.batching=padded  data.block_size=32768  train.batch_tokens=0
    h100:8     1               19.6 / 80         558 (742)                               14.8
    h100:16    1               10.1 / 80         279 (371)                                7.4  mesh.sequence=2
    v5p:2x2x4  1               22.4 / 103        2438 (3358)                            139.4  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v6e:4x4    1               22.4 / 34         2438 (3358)                             69.7  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
"""  # noqa: E501, a row of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.on_s1k("qwen3_8b")
