"""Qwen2.5-7B-Instruct fine-tuned on s1K with adapters on weights in nf4 (QLoRA), for one GPU.

python -m launch.convert --from_hf=Qwen/Qwen2.5-7B-Instruct --to=runs/qwen2p5_7b
python -m launch.train --config=configs/s1_qwen2p5_7b_qlora.py --workdir=runs/s1_qwen2p5_7b_qlora
python -m launch.convert --from=runs/s1_qwen2p5_7b_qlora --merge --to_hf=runs/s1_qwen2p5_7b_merged
"""

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.adapters_on_s1k("qwen2p5_7b")
