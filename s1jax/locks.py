"""Files that one process at a time may have: a run's folder while it trains, a file of samples while it grows."""

from __future__ import annotations

import fcntl
from typing import IO, Any


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
