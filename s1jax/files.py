"""Files that one process at a time may have, and errors that say which file they are about.

A run's folder is had by one process while it trains, a file of samples while it grows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT)  # of OSErrors: the disk is full, or what one user may have of it


def take(file: IO[Any]) -> bool:
    """Locks an open file until it is closed or this process ends, however it does.

    Returns:
      False where another process has it. True as well where the file system has no locks: nothing keeps others out.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives `path` to an OSError from within that names no file, as of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
