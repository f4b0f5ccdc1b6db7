"""How the processes of a run divide rows among them when each samples with its own devices."""

from __future__ import annotations

import contextlib
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from s1jax.io import journals as journals_lib
from s1jax.io.journals import Journals, Share
from s1jax.parallel import processes


def share() -> Share:
    """Returns the share of this process among all that `jax.distributed` has connected."""
    return Share(jax.process_index(), jax.process_count())


def open_journals(path: pathlib.Path, run: str, share: Share) -> Journals:
    """Opens the journals of a run; all its processes call this at the same place.

    Args:
      path: journal of process 0.
      run: fingerprint of the run.
      share: of this process.

    Raises:
      UserError: in all processes, if one of them cannot open its files, does not see those of process 0 or works on
        something else.
    """
    with contextlib.ExitStack() as stack:
        opened: list[Journals] = []

        def take() -> None:
            opened.append(stack.enter_context(Journals(path, run, share)))

        def follow() -> None:
            journals_lib.check_seen(path, agree)
            take()

        processes.together(lambda: take() if share.is_first else None)
        if share.num_processes > 1:
            own = np.frombuffer(bytes.fromhex(run[:16]), np.uint32)
            agree = bool((multihost_utils.broadcast_one_to_all(own) == own).all())
            processes.together(lambda: None if share.is_first else follow())
        stack.pop_all()
        return opened[0]
