"""Runs one command of s1jax from another, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

# Large pages for large arrays: with small ones a train step of benchmarks/train_step.py spends 2 of 7 s in page faults.
# glibc reads it when a process starts.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def line(arguments: Sequence[str]) -> list[str]:
    """Returns the command line of a process that runs `s1jax ARGUMENTS`."""
    return [sys.executable, "-m", "s1jax.cli", *arguments]


def run(arguments: Sequence[str]) -> int:
    """Runs a command of s1jax and returns its exit code; SIGTERM is passed on to it."""
    with subprocess.Popen(line(arguments), env=ENVIRONMENT | dict(os.environ)) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the process as well
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code
