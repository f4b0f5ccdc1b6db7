"""Runs EleutherAI's lm-evaluation-harness with the model `s1jax`; every flag is the harness's own.

    python -m launch.lm_eval --model s1jax --model_args checkpoint=CKPT,max_thinking_tokens=4096,num_waits=1,wait=Wait
        --tasks gsm8k --batch_size 16 [--gen_kwargs max_gen_toks=512] [--output_path DIR --log_samples]

Release 0.4.13 of the harness has no way to register an external model, hence this command. Later releases find `s1jax`
if it is installed, and their own command `lm_eval` works as well. `s1jax/evaluation/lm_eval.py` has the arguments.
"""

from __future__ import annotations

import pathlib
import traceback

from s1jax.cli import command
from s1jax.errors import MissingPackageError


def main() -> int | None:
    """Runs the harness, and turns its errors (an unknown task, an unreachable dataset) into one sentence."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        raise MissingPackageError("This command", package, "harness") from None
    from s1jax.evaluation import lm_eval  # which registers the model

    try:
        cli_evaluate()
    except Exception as error:
        ours = pathlib.Path(lm_eval.__file__).parent
        if any(ours in pathlib.Path(frame.filename).parents for frame in traceback.extract_tb(error.__traceback__)):
            raise
        what = " ".join("".join(traceback.format_exception_only(error)).split())
        return command.fail(f"lm-evaluation-harness: {what}")
    return None
