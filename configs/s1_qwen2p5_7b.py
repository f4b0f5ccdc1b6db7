"""s1-7B: Qwen2.5-7B-Instruct fine-tuned on s1K with the paper's recipe.

python -m launch.convert --from_hf=Qwen/Qwen2.5-7B-Instruct --to=runs/qwen2p5_7b
python -m launch.train --config=configs/s1_qwen2p5_7b.py --workdir=runs/s1_7b --config.init_from=runs/qwen2p5_7b
"""

import ml_collections

from s1jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(config_lib.defaults("qwen2p5_7b"))
    config.data.source = "s1k"
    config.train.attention = "chunked"
    return config
