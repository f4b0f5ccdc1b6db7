"""The command `s1jax NAME [--flag=value ...]`; `python -m s1jax.cli` is the same, and so is `python -m launch.NAME`."""

from __future__ import annotations

import importlib
import sys

from s1jax.cli import command

# What each command does, as `s1jax --help` lists it: in the order in which they are used.
COMMANDS = {
    "check": "check a new machine: kernels, tokens, speed; the first command to run on an accelerator",
    "quickstart": "train and evaluate the small model that comes with s1jax, in minutes on a CPU",
    "curation_story": "distil, curate and train on the small model that comes with s1jax, in minutes on a CPU",
    "convert": "import and export Hugging Face and GGUF checkpoints",
    "measure": "measure how hard each row of a pool is for a student, before a teacher is paid",
    "curate": "choose rows to train on, or questions for a teacher, out of a pool",
    "distil": "ask a teacher questions, and write its answers as training rows",
    "teacher_logits": "score training rows with a teacher, for distillation without it beside the student",
    "train": "fine-tune or pretrain a decoder; the same command again resumes the run",
    "sample": "answer prompts under a thinking budget",
    "serve": "serve a checkpoint over HTTP, with the APIs of OpenAI and Anthropic",
    "evaluate": "measure accuracy against thinking tokens, and draw the curve",
    "plot": "draw the curves of several evaluations on one picture",
    "plan": "estimate memory and time of a training run on hardware that you do not have",
    "lm_eval": "run EleutherAI's lm-evaluation-harness with the model s1jax",
}
_CONFIG_FLAG = {"train": "config", "plan": "config", "teacher_logits": "config"}
_POSITIONAL = ("plot",)  # commands with arguments that are not flags


def start(name: str) -> None:
    """Runs one of `COMMANDS` with the flags of the command line and exits with its code."""
    module = importlib.import_module(f"s1jax.cli.{name}")
    if name == "lm_eval":  # the flags are the harness's own
        sys.exit(command.leave(command.guarded(module.main)))
    command.run(module.main, _CONFIG_FLAG.get(name, ""), name in _POSITIONAL)


def main() -> None:
    """Reads the name of the command and runs it."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        # absl prints the help of the program that sys.argv[0] names.
        sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
        start(name)
    elif name in ("", "-h", "--help", "help"):
        print("usage: s1jax COMMAND [--flag=value ...]\n")
        for command_name, purpose in COMMANDS.items():
            print(f"  {command_name:16}{purpose}")
        print("\n`s1jax COMMAND --help` lists the flags of a command.")
    elif name == "--version":
        from s1jax import __version__

        print(__version__)
    else:
        sys.exit(command.fail(f"{name!r} is not a command of s1jax; the commands are {', '.join(COMMANDS)}."))


if __name__ == "__main__":
    main()
