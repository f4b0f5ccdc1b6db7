"""`python -m launch.sample` is the command `s1jax sample`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("sample")
