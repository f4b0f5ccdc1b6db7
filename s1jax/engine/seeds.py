"""The seed of each sample of a call, so that one seed given by the user does not give all rows the same noise."""

from __future__ import annotations

import numpy as np


def derive(seed: int, index: int = 0, repetition: int = 0) -> int:
    """Returns the seed of one sample, a whole number in [0, 2**32).

    Sample 0 of row 0 has `seed` itself, so that a row that is run alone with the seed of an output gives it again. All
    others get a hash of the three numbers (`numpy.random.SeedSequence`, which NumPy keeps stable across versions):
    sums such as seed + index would give neighbouring seeds the same noise, one row later.

    Args:
      seed: of the call, or the row's own, in [0, 2**32).
      index: of the row in its file or call; 0 for a row that has a seed of its own, whose place must not matter.
      repetition: of the row's `n` samples, from 0.
    """
    if index == 0 and repetition == 0:
        return seed
    return int(np.random.SeedSequence([seed, index, repetition]).generate_state(1)[0])
