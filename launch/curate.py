"""`python -m launch.curate` is the command `s1jax curate`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("curate")
