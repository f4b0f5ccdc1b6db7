"""Prefix cache: finds the pages of the KV cache that hold the beginning of a sequence.

A full page is known by a hash of its tokens and of everything before them, so two sequences share it only if they are
equal up to its end. The page after the last full one of a prompt is known, too: it is copied, because its owner goes on
writing to it. The cache is a user of its pages like a sequence, see `s1jax.engine.pages`; pages that only the cache
uses are freed when the pool is empty, the least recently used first.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence

import numpy as np

from s1jax.engine.pages import PagePool


class PrefixCache:
    """The pages of one pool whose contents are known."""

    def __init__(self, pool: PagePool, page_size: int):
        """Starts empty.

        Args:
          pool: of the pages.
          page_size: tokens of a page.
        """
        self._pool, self._size = pool, page_size
        # From the least to the most recently used; keys are hashes of everything up to a page's last token.
        self._pages: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        # A page that was known before it was full has two keys.
        self._keys_of: dict[int, list[bytes]] = {}
        self._is_known = np.zeros(pool.num_pages, bool)

    def find(self, ids: Sequence[int], salt: bytes = b"") -> tuple[list[int], int | None]:
        """Finds the pages that hold the beginning of a sequence.

        Args:
          ids: tokens of the sequence.
          salt: sequences of another salt share no page with it.

        Returns:
          The pages of its first tokens, each of them full, which have one user more from now on. And the page that
          holds all tokens after these, if there is one: it is only to be copied, at once.
        """
        keys, rest = self._keys(ids, salt)
        found = []
        for key in keys:
            if key not in self._pages:
                break
            found.append(self._pages[key])
        partial = self._pages.get(rest) if len(found) == len(keys) and rest else None
        # A page is of no use without those before it, so it is to leave the cache before them.
        for key in reversed([*keys[: len(found)], *([rest] if partial is not None else [])]):
            self._pages.move_to_end(key)
        self._pool.incref(found)
        return found, partial

    def add(self, ids: Sequence[int], pages: Sequence[int], salt: bytes = b"", *, partial: bool = False) -> None:
        """Makes the pages of a sequence known.

        Args:
          ids: tokens of the sequence.
          pages: that hold them.
          salt: see `find`.
          partial: also the page that is not full.
        """
        keys, rest = self._keys(ids, salt)
        if partial and rest:
            keys.append(rest)
        for key, page in reversed(list(zip(keys, pages, strict=False))):
            if key not in self._pages:
                self._pages[key] = page
                if page not in self._keys_of:
                    self._pool.incref([page])
                    self._is_known[page] = True
                self._keys_of.setdefault(page, []).append(key)
            self._pages.move_to_end(key)

    def num_unused(self) -> int:
        """Returns how many pages only the cache uses."""
        return self._pool.num_used_once(self._is_known)

    def evict(self, count: int) -> None:
        """Frees pages that only the cache uses, the least recently used first, until `count` pages are free."""
        for page in list(self._pages.values()) if self._pool.num_free < count else ():
            if self._pool.num_free >= count:
                return
            if page in self._keys_of and self._pool.uses(page) == 1:
                for key in self._keys_of.pop(page):
                    del self._pages[key]
                self._pool.decref([page])
                self._is_known[page] = False

    def _keys(self, ids: Sequence[int], salt: bytes) -> tuple[list[bytes], bytes]:
        """The key of each full page, and that of the tokens after them; empty if there are none."""
        key, keys = hashlib.blake2b(salt, digest_size=16).digest(), []
        whole = np.asarray(ids, np.int32)
        full = len(whole) - len(whole) % self._size
        for start in range(0, full, self._size):
            key = hashlib.blake2b(key + whole[start : start + self._size].tobytes(), digest_size=16).digest()
            keys.append(key)
        rest = whole[full:]
        return keys, hashlib.blake2b(key + rest.tobytes(), digest_size=16).digest() if len(rest) else b""
