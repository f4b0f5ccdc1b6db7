"""`python -m launch.evaluate` is the command `s1jax evaluate`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("evaluate")
