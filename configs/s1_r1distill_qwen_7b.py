"""DeepSeek-R1-Distill-Qwen-7B fine-tuned on s1K with the paper's recipe.

    python -m launch.convert --from_hf=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
        --to=runs/r1_distill_qwen_7b --chat=think_r1
    python -m launch.train --config=configs/s1_r1distill_qwen_7b.py --workdir=runs/s1_r1distill_qwen_7b

Planned with `python -m launch.plan --config=configs/s1_r1distill_qwen_7b.py --model=r1_distill_qwen_7b
--target=TARGET --config.train.accumulation=N --mfu=0.2` (jax 0.10.2; compiled ahead of time, never run; 20 % is about
what the paper's own run reached; padding counts as work). Rows with data.batching=padded were planned so, at the
paper's block:

    target     micro-batches  peak / limit GB   TFLOP a device and step (executed)   minutes at 20 % MFU
    h100:1     1               74.5 / 80         2037 (2663)                            858.1  train.batch_size=1  train.param_dtype=bfloat16  optimizer.moment_dtype=bfloat16  data.batching=padded  data.block_size=32768  train.batch_tokens=0
    h100:8     2               31.2 / 80         4073 (5326)                            108.1  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    h100:16    1               20.5 / 80         2037 (2663)                             54.1  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v5p:2x2x4  1               19.5 / 103        2037 (2737)                            116.5  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
    v6e:4x4    1               19.5 / 34         2037 (2737)                             58.2  data.batching=padded  data.block_size=32768  train.batch_tokens=0  train.batch_size=16
"""  # noqa: E501, a row of the table

import ml_collections

from s1jax.config import recipes


def get_config() -> ml_collections.ConfigDict:
    return recipes.on_s1k("r1_distill_qwen_7b")
