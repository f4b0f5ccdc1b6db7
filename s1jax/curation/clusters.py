"""Divides rows into clusters of near vectors, whatever the order of the rows: k-means."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from s1jax.errors import UserError

_ROUNDS = 100  # at most; k-means mostly ends by itself after 10 to 50
_BLOCK = 8192  # rows that are held in float64 at one time


def assign(ids: Sequence[str], vectors: np.ndarray, count: int, seed: int = 0) -> dict[str, int]:
    """Returns the cluster of every id.

    Lloyd's k-means from the starting points of k-means++ (D. Arthur and S. Vassilvitskii, SODA 2007), whose random
    numbers are hashes of `seed` and the number of the draw. Rows are sorted by id first, and rows of one id count once.
    Clusters are numbered in the order of their smallest ids.

    Args:
      ids: one a row; rows with the same id have the same vector.
      vectors: [rows, D].
      count: clusters.
      seed: of the starting points.

    Raises:
      UserError: there are fewer different ids than clusters.
    """
    first: dict[str, int] = {}
    for place, row_id in enumerate(ids):
        first.setdefault(row_id, place)
    if not 1 <= count <= len(first):
        raise UserError(f"{len(first):,} different questions cannot be divided into {count:,} clusters; ask for fewer.")
    names = sorted(first)
    x = np.asarray(vectors, np.float32)[[first[name] for name in names]]
    found = _lloyd(x, _start(x, count, seed))
    numbers: dict[int, int] = {}
    return {name: numbers.setdefault(int(one), len(numbers)) for name, one in zip(names, found, strict=True)}


def uniform(seed: int, number: int) -> float:
    """Returns a number in [0, 1) with 53 random bits: a hash of `seed` and `number`."""
    return (int.from_bytes(hashlib.sha256(f"clusters {seed} {number}".encode()).digest()[:8], "big") >> 11) / 2**53


def _start(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns starting centres [count, D]: each is a row, drawn by its squared distance to those before."""
    chosen = [int(uniform(seed, 0) * len(x))]
    nearest = _squares(x, x[chosen]).min(1)
    for number in range(1, count):
        nearest[chosen] = 0
        total = np.cumsum(nearest, dtype=np.float64)
        place = int(np.searchsorted(total, uniform(seed, number) * total[-1], side="right"))
        if not total[-1]:  # fewer different vectors than clusters: the first row that was not chosen
            place = next(i for i in range(len(x)) if i not in chosen)
        chosen.append(min(place, len(x) - 1))
        nearest = np.minimum(nearest, _squares(x, x[chosen[-1:]]).min(1))
    return x[chosen].astype(np.float64)


def _lloyd(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the cluster [rows] of each row; none is empty where there are as many different rows as clusters."""
    count, found = len(centres), np.full(len(x), -1)
    for _ in range(_ROUNDS):
        distances = _squares(x, centres)
        now = distances.argmin(1)
        own = distances[np.arange(len(x)), now]
        sizes = np.bincount(now, minlength=count)
        for empty in np.flatnonzero(sizes == 0):  # it takes the row that is farthest from its centre
            movable = np.where(sizes[now] > 1, own, -1.0)
            row = int(movable.argmax())
            sizes[now[row]] -= 1
            now[row], own[row], sizes[empty] = empty, 0.0, 1
        if (now == found).all():
            break
        found = now
        centres = np.stack([x[found == number].mean(0, dtype=np.float64) for number in range(count)])
    return found


def _squares(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [rows, centres], not negative; computed in float64, because near rows differ by little."""
    c = np.asarray(centres, np.float64)
    blocks = []
    for start in range(0, len(x), _BLOCK):
        y = x[start : start + _BLOCK].astype(np.float64)
        blocks.append(np.maximum((y**2).sum(1)[:, None] + (c**2).sum(1) - 2 * y @ c.T, 0.0))
    return np.concatenate(blocks)
