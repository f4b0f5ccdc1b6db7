"""The prefix cache, against a dictionary of all beginnings that were added, on random sequences."""

import numpy as np

from s1jax.engine.pages import PagePool
from s1jax.engine.prefix import PrefixCache

SIZE = 4


def test_it_finds_the_longest_beginning_and_loses_no_page():
    rng = np.random.default_rng(0)
    pool = PagePool(12)
    cache = PrefixCache(pool, SIZE)
    known: dict[tuple, int] = {}  # salt and tokens up to the end of a full page -> page
    running = []
    for _ in range(2000):
        salt = bytes([rng.integers(2)])
        ids = tuple(rng.integers(0, 2, rng.integers(1, 14)).tolist())
        shared, partial = cache.find(ids, salt)
        want = 0
        while (salt, ids[: (want + 1) * SIZE]) in known and (want + 1) * SIZE <= len(ids):
            want += 1
        assert len(shared) == want
        assert shared == [known[salt, ids[: (i + 1) * SIZE]] for i in range(want)]
        assert partial is None or (len(ids) % SIZE and want == len(ids) // SIZE)
        needed = -(-len(ids) // SIZE) - want
        before = pool.num_free + cache.num_unused()
        cache.evict(needed)
        known = {key: page for key, page in known.items() if page in cache._keys_of}
        own = pool.try_take(needed)
        assert (own is not None) == (needed <= before)
        if own is None:
            pool.decref(shared)
        else:
            pages = shared + own
            cache.add(ids, pages, salt, partial=True)
            for i in range(len(ids) // SIZE):
                known.setdefault((salt, ids[: (i + 1) * SIZE]), pages[i])
            running.append(pages)
        while running and rng.random() < 0.6:
            pool.decref(running.pop(rng.integers(len(running))))
    for pages in running:
        pool.decref(pages)
    assert pool.num_free + cache.num_unused() == 12
    cache.evict(12)
    assert pool.num_free == 12 and cache._pages == {} and cache._keys_of == {}


def test_a_page_that_becomes_full_later_has_two_keys_and_one_user():
    pool = PagePool(3)
    cache = PrefixCache(pool, SIZE)
    pages = pool.try_take(2)
    cache.add((1, 2, 3, 4, 5), pages, partial=True)
    cache.add((1, 2, 3, 4, 5, 6, 7, 8), pages)
    pool.decref(pages)
    assert cache.find((1, 2, 3, 4, 5)) == (pages[:1], pages[1])
    pool.decref(pages[:1])
    assert cache.find((1, 2, 3, 4, 5, 6, 7, 8)) == (pages, None)
    pool.decref(pages)
    cache.evict(3)
    assert pool.num_free == 3
