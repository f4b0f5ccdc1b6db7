"""`python -m launch.quickstart` is the command `s1jax quickstart`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("quickstart")
