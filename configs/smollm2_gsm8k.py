r"""A real pretrained model on real text: SmolLM2-135M-Instruct fine-tuned on 1,000 GSM8K rows in s1K form.

    python -m launch.convert --from_gguf=SmolLM2-135M-Instruct.Q4_1.gguf --to=runs/smollm2 --chat=s1_plain
    python -m benchmarks.gsm8k_rows --train=gsm8k_train.jsonl --rows=1000 --out=runs/gsm8k_rows.jsonl
    python -m launch.train --config=configs/smollm2_gsm8k.py --workdir=runs/smollm2_gsm8k
    python -m launch.evaluate --checkpoint=runs/smollm2_gsm8k --task=gsm8k:gsm8k_test.jsonl --num_problems=50 \
        --batch_size=50 --budgets=0,64,none --waits=1 --max_thinking_tokens=160 --max_answer_tokens=24 \
        --out=runs/smollm2_gsm8k/curve

What came of it on two shared CPU cores, with one epoch of the five (--config.train.epochs=1 --config.train.remat=none,
63 steps): the loss fell from 2.03 to 0.93. The first 50 problems of GSM8K's test split, greedy:

    run         accuracy %   thinking tokens   cut %
    cut at 0     8.0 +- 3.8        0.0          100
    cut at 64    4.0 +- 2.8       56.1           54
    no limit     2.0 +- 2.0       87.8           28
    Wait x1      0.0 +- 0.0      110.4           36

The whole path runs and the budgets hold (Control 100 %), but there is no curve to see: the model has learnt the form of
these solutions, not their arithmetic, and the four runs differ by no more than chance.
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
