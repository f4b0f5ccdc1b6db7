"""Qwen2.5-0.5B-Instruct fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-0.5B-Instruct --to=runs/qwen2p5_0p5b
    python -m launch.train --config=configs/s1_qwen2p5_0p5b.py --workdir=runs/s1_qwen2p5_0p5b

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_0p5b.py --model=qwen2p5_0p5b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; padding counts as work). Rows with data.batching=padded were planned so, at the
paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     16              13.2 / 80         3771 (5144)                            100.1  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    h100:8     1                2.4 / 80         44 (61)                                  1.2
    h100:16    1                1.7 / 80         22 (30)                                  0.6  mesh.sequence=2
    v5p:2x2x1  4                5.8 / 103        943 (1350)                              53.9  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v6e:2x2    4                5.8 / 34         943 (1350)                              27.0  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
"""  # noqa: E501, rows of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.on_s1k("qwen2p5_0p5b")
