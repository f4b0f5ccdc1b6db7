"""`python -m launch.train` is the command `s1jax train`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("train")
