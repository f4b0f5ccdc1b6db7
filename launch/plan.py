"""`python -m launch.plan` is the command `s1jax plan`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("plan")
