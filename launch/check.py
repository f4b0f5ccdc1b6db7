"""`python -m launch.check` is the command `s1jax check`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("check")
