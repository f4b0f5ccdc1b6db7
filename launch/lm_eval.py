"""EleutherAI's lm-evaluation-harness with the model `s1jax`; every flag is the harness's own.

    python -m launch.lm_eval --model s1jax --model_args checkpoint=CKPT,max_thinking_tokens=4096,num_waits=1,wait=Wait
        --tasks gsm8k --batch_size 16 [--gen_kwargs max_gen_toks=512] [--output_path DIR --log_samples]

The harness has no way to be told of a model from outside, hence this command; `s1jax/harness.py` has the arguments.
"""

from __future__ import annotations

import sys

from launch import cli
from s1jax.config import InputError


def main() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        raise InputError(f"{package} is not installed; python -m pip install -e .[harness] brings it.") from None
    from s1jax import harness  # noqa: F401  which registers the model

    cli_evaluate()


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
