"""`python -m launch.convert` is the command `s1jax convert`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("convert")
