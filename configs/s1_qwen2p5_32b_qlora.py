"""Qwen2.5-32B-Instruct fine-tuned on s1K with adapters on weights in nf4 (QLoRA), for one GPU.

    python -m launch.convert --from_hf=Qwen/Qwen2.5-32B-Instruct --to=runs/qwen2p5_32b
    python -m launch.train --config=configs/s1_qwen2p5_32b_qlora.py --workdir=runs/s1_qwen2p5_32b_qlora
    python -m launch.convert --from=runs/s1_qwen2p5_32b_qlora --merge --to_hf=runs/s1_qwen2p5_32b_merged

Planned with `python -m launch.plan --config=configs/s1_qwen2p5_32b_qlora.py --model=qwen2p5_32b
--target=TARGET --config.train.accumulation=N --config.data.batching=padded --config.train.batch_tokens=0
--config.train.batch_size=1 --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; padding counts as work). A row of
the longest block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     1               59.9 / 80         6330 (8625)                            2666.8  data.block_size=32768
"""

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.adapters_on_s1k("qwen2p5_32b")
    config.train.remat = "full,save_attention:20"
    return config
