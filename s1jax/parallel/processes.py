"""Agreement between the processes of a run, so that none of them stops alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from s1jax.errors import UserError

Result = TypeVar("Result")

_SENTENCE_BYTES = 2048  # of an error that goes from one process to all


class SharedError(UserError):
    """An error that every process of a run raises at the same place, so that it is enough if one of them says it."""


def together(action: Callable[[], Result]) -> Result:
    """Runs `action` in every process and returns what it gave here; all processes call this at the same place.

    A process alone that turned back would leave the others waiting for it in their next collective operation.

    Raises:
      SharedError: in all processes, where `action` raised UserError in one of them; the sentence of the first one.
      UserError: the same where there is but one process.
    """
    if jax.process_count() == 1:
        return action()
    result, sentence = None, ""
    try:
        result = action()
    except UserError as error:
        sentence = str(error) if jax.process_index() == 0 else f"process {jax.process_index()}: {error}"
    mine = np.zeros(_SENTENCE_BYTES, np.uint8)
    text = np.frombuffer(sentence.encode()[:_SENTENCE_BYTES], np.uint8)
    mine[: len(text)] = text
    for row in multihost_utils.process_allgather(mine):
        said = row.tobytes().rstrip(b"\0").decode(errors="ignore")
        if said:
            raise SharedError(said)
    return result  # type: ignore[return-value]  # there was no error, so `action` has returned
