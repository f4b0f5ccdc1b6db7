"""`python -m launch.serve` is the command `s1jax serve`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("serve")
