"""The errors that a user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """Input that a user can correct: one sentence that names the file, row, flag or tensor and the remedy.

    Launchers print it without a traceback and exit with code 2.
    """


class MissingPackageError(UserError):
    """An optional package is not installed; the sentence names the extra of s1jax that brings it."""

    def __init__(self, purpose: str, package: str, extra: str):
        """Writes the sentence.

        Args:
          purpose: what needs the package; begins the sentence.
          package: as pip calls it.
          extra: of setup.py.
        """
        super().__init__(f"{purpose} needs {package}, which is not installed: {install(extra)} brings it.")


def install(extra: str) -> str:
    """Returns the command that installs an extra of s1jax."""
    return f'python -m pip install "s1jax[{extra}]"'
