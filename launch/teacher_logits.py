"""`python -m launch.teacher_logits` is the command `s1jax teacher_logits`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("teacher_logits")
