"""Page pool: allocates the pages of the KV cache, which sequences may share."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np


class PagePool:
    """Which pages are free, and how many users each of the others has."""

    def __init__(self, num_pages: int):
        """Takes the number of pages; all of them are free."""
        self._free = collections.deque(range(num_pages))
        self._uses = np.zeros(num_pages, np.int32)

    @property
    def num_free(self) -> int:
        """Number of free pages."""
        return len(self._free)

    def uses(self, page: int) -> int:
        """Number of users of a page."""
        return int(self._uses[page])

    def num_used_once(self, pages: np.ndarray) -> int:
        """Returns how many of `pages`, bool [number of pages], have one user."""
        return int(np.count_nonzero(pages & (self._uses == 1)))

    @property
    def num_pages(self) -> int:
        """Number of pages."""
        return len(self._uses)

    def try_take(self, count: int) -> list[int] | None:
        """Returns `count` free pages, which have one user from now on; None if fewer are free."""
        if count > len(self._free):
            return None
        pages = [self._free.popleft() for _ in range(count)]
        self._uses[pages] = 1
        return pages

    def incref(self, pages: Iterable[int]) -> None:
        """Adds a user to each of `pages`."""
        self._uses[list(pages)] += 1

    def decref(self, pages: Iterable[int]) -> None:
        """Removes a user from each of `pages`; those without users are free again."""
        pages = list(pages)
        self._uses[pages] -= 1
        self._free.extend(page for page in pages if self._uses[page] == 0)
