"""A real pretrained model on real text: SmolLM2-135M-Instruct fine-tuned on 1,000 GSM8K rows in s1K form.

python -m launch.convert --from_gguf=SmolLM2-135M-Instruct.Q4_1.gguf --to=runs/smollm2 --chat=s1_plain
python -m benchmarks.gsm8k_rows --train=gsm8k_train.jsonl --rows=1000 --out=runs/gsm8k_rows.jsonl
python -m launch.train --config=configs/smollm2_gsm8k.py --workdir=runs/smollm2_gsm8k
"""

import ml_collections

from s1jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(config_lib.defaults())
    config.init_from = "runs/smollm2"
    config.data.source = "runs/gsm8k_rows.jsonl"
    config.data.num_rows = 1000
    config.data.block_size = 512
    config.data.batching = "packed"
    config.train.batch_size = 16
    config.train.epochs = 5
    config.train.compute_dtype = "float32"
    config.train.remat = "full"
    config.optimizer.learning_rate = 1e-4  # the paper's 1e-5 is for 32 billion weights
    return config
