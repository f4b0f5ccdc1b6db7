"""`python -m launch.curation_story` is the command `s1jax curation_story`."""

from s1jax.cli import __main__ as cli

if __name__ == "__main__":
    cli.start("curation_story")
