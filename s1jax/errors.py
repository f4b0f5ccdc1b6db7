"""The error of every input that a user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """Input that a user can correct: one sentence that names the file, row, flag or tensor and the remedy.

    Launchers print it without a traceback and exit with code 2.
    """
