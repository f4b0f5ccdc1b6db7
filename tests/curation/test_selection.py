"""Draws as a function of ids and seed: frequencies, order, shards, domains that run dry."""

import collections
import random

import numpy as np
import pytest
from scipy import stats

from s1jax.curation import selection
from s1jax.curation.selection import Candidate


def pool(sizes, seed=0):
    """Candidates of domains of such sizes, with lengths that have ties."""
    rng = random.Random(seed)
    return [
        Candidate(f"{rng.getrandbits(128):032x}", f"domain {d}", (-rng.randrange(1 + size // 2),))
        for d, size in enumerate(sizes)
        for _ in range(size)
    ]


def ids(found):
    return [pick.id for pick in found.picks]


@pytest.mark.parametrize("left", [1, 2, 3, 7, 1000])
def test_ranks_have_the_frequencies_of_the_paper(left):
    """Against 2^-rank, normalised over the rows that are left, as numpy's choice draws in the released notebook."""
    n = 4000
    counts = collections.Counter(selection.rank(left, 5, "rank", "d", i) for i in range(n))
    weights = 2.0 ** -np.arange(1, left + 1)
    weights /= weights.sum()
    shown = min(left, 8)
    expected = [*(n * weights[:shown])]
    observed = [counts[j] for j in range(1, shown + 1)]
    if left > shown:
        expected.append(n - sum(expected))
        observed.append(n - sum(observed))
    assert sum(observed) == n and (left == 1 or stats.chisquare(observed, expected).pvalue > 1e-3)


def test_whole_selections_have_the_frequencies_of_an_independent_sampler():
    """How often each of the longest rows of a domain is in the set, over seeds, against numpy's sampling."""
    sizes, size, repeats = (12, 5), 6, 1500
    rows = [Candidate(f"{d}-{i}", f"{d}", (i,)) for d, n in enumerate(sizes) for i in range(n)]
    ours = collections.Counter(row for seed in range(repeats) for row in ids(selection.select(rows, size, seed)))
    rng, theirs = np.random.default_rng(0), collections.Counter()
    for _ in range(repeats):
        domains = {d: [f"{d}-{i}" for i in range(n)] for d, n in enumerate(sizes)}
        for _ in range(size):
            domain = domains[rng.choice([d for d in domains if domains[d]])]
            weights = 2.0 ** -np.arange(len(domain))
            theirs[taken := domain[rng.choice(len(domain), p=weights / weights.sum())]] += 1
            domain.remove(taken)
    for row in rows:
        p = (ours[row.id] + theirs[row.id]) / (2 * repeats)
        error = np.sqrt(2 * max(p * (1 - p), 1e-3) / repeats)
        assert abs(ours[row.id] - theirs[row.id]) / repeats < 4.5 * error, row.id


def test_neither_order_nor_shards_matter():
    rows = pool([400, 30, 1, 90])
    expected = ids(selection.select(rows, 200, 7))
    for shards in (1, 2, 8):
        shuffled = random.Random(shards).sample(rows, len(rows))
        # Each shard keeps the first rows of a domain only, as a distributed run does.
        kept = []
        for shard in range(shards):
            domains = collections.defaultdict(list)
            for row in shuffled[shard::shards]:
                domains[row.domain].append(row)
            for own in domains.values():
                kept += sorted(own, key=lambda row: row.key)[: 200 + selection.MOST_RANK]
        assert ids(selection.select(kept, 200, 7)) == expected


def test_the_first_rows_of_a_large_domain_suffice():
    rows = pool([3000])
    first = sorted(rows, key=lambda row: row.key)[: 100 + selection.MOST_RANK]
    assert ids(selection.select(rows, 100, 3)) == ids(selection.select(first, 100, 3))


def test_another_seed_gives_another_set_and_a_larger_size_a_superset():
    rows = pool([100, 100])
    one, other = (set(ids(selection.select(rows, 50, seed))) for seed in (1, 2))
    assert one != other
    assert ids(selection.select(rows, 80, 1))[:50] == ids(selection.select(rows, 50, 1))


def test_a_domain_that_runs_dry_leaves_its_draws_to_the_others():
    rows = pool([1, 3, 200])
    found = selection.select(rows, 150, 0)
    assert len(set(ids(found))) == 150 and set(found.dry) == {"domain 0", "domain 1"}
    counts = collections.Counter(pick.domain for pick in found.picks)
    assert counts == {"domain 0": 1, "domain 1": 3, "domain 2": 146}


def test_fewer_rows_than_asked_for_are_all_chosen():
    rows = pool([3, 1])
    assert set(ids(selection.select(rows, 10, 0))) == {row.id for row in rows}


def test_ties_are_broken_by_id():
    rows = [Candidate(name, "d", (1.0,)) for name in "cab"]
    assert ids(selection.select(rows, 3, 0, by_rank=False)) == ["a", "b", "c"]


def test_rows_chosen_before_the_draws_stay_in_their_domain_and_cost_draws():
    """As in Algorithm 1 and in the released notebook, whose set absorbs a row that it has."""
    rows = [Candidate(f"{i:02d}", "d", (i,), first=i < 3) for i in range(20)]
    found = selection.select(rows, 12, 0)
    assert {"00", "01", "02"} <= {pick.id for pick in found.picks if pick.rank == 0}
    assert len(ids(found)) == 12 and found.lost == 3
    assert len(selection.select(rows, 2, 0).picks) == 2


def test_the_mix_of_the_last_draws():
    rows = pool([300, 300, 300])
    mix = {"domain 1": 3.0, "domain 2": 1.0}
    found = selection.select(rows, 400, 0, mix_after=100, mix=mix)
    first, last = (collections.Counter(p.domain for p in part) for part in (found.picks[:100], found.picks[100:]))
    assert len(first) == 3 and set(last) == {"domain 1", "domain 2"}
    assert stats.chisquare([last["domain 1"], last["domain 2"]], [225, 75]).pvalue > 1e-3
    dry = selection.select(pool([300, 2]), 100, 0, mix_after=50, mix={"domain 1": 1.0})
    assert len(dry.picks) == 100  # a mix that has run dry leaves the other domains
