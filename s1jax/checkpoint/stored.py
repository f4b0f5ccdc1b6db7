"""Stored tensors that no view of one of our arrays describes, and copies between the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_BLOCK = 256


class Piece(NamedTuple):
    """A part of a stored tensor.

    Attributes:
      ours: view of our array.
      expanded: shape of the whole stored tensor before axes were merged.
      place: of the part in a tensor of that shape.
      neighbours: the axis whose entries are stored as pairs side by side and ours as two halves; None: none.
    """

    ours: np.ndarray
    expanded: tuple[int, ...]
    place: tuple[slice, ...]
    neighbours: int | None = None

    def both(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of our array and of the whole stored one with the same numbers at the same places."""
        theirs = np.reshape(stored, self.expanded)[self.place]
        if self.neighbours is None:
            return _matrices(self.ours, theirs)
        before, after = theirs.shape[: self.neighbours], theirs.shape[self.neighbours + 1 :]
        half = theirs.shape[self.neighbours] // 2
        pairs = np.reshape(theirs, (*before, half, 2, *after), copy=False).swapaxes(len(before), len(before) + 1)
        return np.reshape(self.ours, (*before, 2, half, *after), copy=False), pairs


def _matrices(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with all axes but the last merged if neither needs a copy for it: `copy` is faster with matrices."""
    if one.ndim < 3:
        return one, other
    shape = (-1, one.shape[-1])
    try:
        return np.reshape(one, shape, copy=False), np.reshape(other, shape, copy=False)
    except ValueError:
        return one, other


class Stored:
    """Stands for one stored tensor where views of numpy do for the plain ones: assign to `[...]`, or make an array.

    Attributes:
      shape: of the stored tensor.
      pieces: that it is put together from; they cover it.
      plus: what is added to our values.
    """

    def __init__(self, shape: Sequence[int], pieces: Sequence[Piece], plus: float = 0.0):
        self.shape, self.pieces, self.plus = tuple(shape), list(pieces), plus

    @property
    def dtype(self) -> np.dtype:
        """Of our arrays."""
        return self.pieces[0].ours.dtype

    @property
    def ndim(self) -> int:
        """Number of stored axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of stored values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, in the dtype of our arrays."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a tensor of several pieces is always a copy")
        array = np.empty(self.shape, dtype or self.dtype)
        self.write(array)
        return array

    def astype(self, dtype: npt.DTypeLike) -> np.ndarray:
        """The stored tensor as an array of `dtype`."""
        return self.__array__(dtype)

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        assert key is ...
        self.read(np.broadcast_to(np.asarray(value), self.shape))

    def read(self, array: np.ndarray) -> None:
        """Fills our arrays from a stored tensor."""
        for piece in self.pieces:
            ours, theirs = piece.both(array)
            copy(ours, theirs - np.asarray(self.plus, theirs.dtype) if self.plus else theirs)

    def write(self, array: np.ndarray) -> None:
        """Fills a stored tensor from our arrays."""
        for piece in self.pieces:
            ours, theirs = piece.both(array)
            copy(theirs, ours.astype(np.float32) + np.float32(self.plus) if self.plus else ours)


def copy(target: Any, source: Any) -> None:
    """Copies `source` into `target` of the same shape, converting the type; either may be a view or `Stored`.

    Goes block by block, because a row-by-row copy between opposite memory orders is bound by cache misses (4x slower).
    """
    if isinstance(target, Stored):
        target.read(source)
        return
    if isinstance(source, Stored):
        source.write(target)
        return
    if target.ndim != 2:
        target[...] = source
        return
    for i in range(0, target.shape[0], _BLOCK):
        for j in range(0, target.shape[1], _BLOCK):
            block = (slice(i, i + _BLOCK), slice(j, j + _BLOCK))
            target[block] = source[block].astype(target.dtype, copy=False)
