"""`python -m launch.lm_eval` is the command `s1jax lm_eval`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("lm_eval")
