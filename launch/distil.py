"""`python -m launch.distil` is the command `s1jax distil`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("distil")
