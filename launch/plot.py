"""`python -m launch.plot` is the command `s1jax plot`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("plot")
