"""`python -m launch.measure` is the command `s1jax measure`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("measure")
