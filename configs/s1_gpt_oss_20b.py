"""gpt-oss-20b, a mixture of 32 experts, fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=openai/gpt-oss-20b --to=runs/gpt_oss_20b --chat=harmony
    python -m launch.train --config=configs/s1_gpt_oss_20b.py --workdir=runs/s1_gpt_oss_20b

Planned with `python -m launch.plan --config=configs/s1_gpt_oss_20b.py --model=gpt_oss_20b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; experts are
taken to get equally many tokens; padding counts as work):

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:8     1               69.5 / 80         253 (284)                                6.7
"""

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    config = recipes.on_s1k("gpt_oss_20b")
    config.train.remat = "save_dots"
    return config
