"""Qwen3-14B fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen3-14B --to=runs/qwen3_14b --chat=think
    python -m launch.train --config=configs/s1_qwen3_14b.py --workdir=runs/s1_qwen3_14b

Planned with `python -m launch.plan --config=configs/s1_qwen3_14b.py --model=qwen3_14b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; padding counts as work). Rows with data.batching=padded were planned so, at the
paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:8     1               33.0 / 80         988 (1296)                              26.2
    h100:16    1               16.6 / 80         494 (648)                               13.1  mesh.sequence=2
    v5p:2x2x4  1               33.9 / 103        4070 (5513)                            232.8  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v6e:4x8    1               17.5 / 34         2035 (2757)                             58.2  mesh.sequence=2  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16

One H100 does not hold it: weights and moments alone take 6 bytes a weight, in bfloat16.
"""  # noqa: E501, rows of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.on_s1k("qwen3_14b")
