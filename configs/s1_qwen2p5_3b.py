"""Qwen2.5-3B-Instruct fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-3B-Instruct --to=runs/qwen2p5_3b
    python -m launch.train --config=configs/s1_qwen2p5_3b.py --workdir=runs/s1_qwen2p5_3b

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_3b.py --model=qwen2p5_3b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; padding counts as work). Rows with data.batching=padded were planned so, at the
paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     16              65.8 / 80         17308 (23165)                          459.4  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    h100:8     1                8.4 / 80         236 (316)                                6.2
    h100:16    1                4.7 / 80         118 (158)                                3.1  mesh.sequence=2
    v5p:2x2x1  4               22.7 / 103        4327 (6009)                            247.5  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v6e:2x2    4               22.6 / 34         4327 (6009)                            123.7  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
"""  # noqa: E501, rows of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.on_s1k("qwen2p5_3b")
