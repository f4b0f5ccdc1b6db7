"""Draws rows: a domain at random, then a row of it by rank, as a function of row ids and a seed alone.

Algorithm 1 of the s1 paper (arXiv 2501.19393, appendix) draws rank j of a domain with a probability in proportion to
2^-j and takes the row out. Here draw number i of a domain takes its rank from a hash of (seed, domain, i), counted
among the rows that are still left. So neither the order of the rows nor their distribution over shards matters, and a
domain needs to hold only its first `size` + `MOST_RANK` rows.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence

MOST_RANK = 257  # the greatest rank that 256 bits can draw, see `rank`


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A row that may be drawn.

    Attributes:
      id: of the row.
      domain: that it is in.
      order: the smaller, the earlier its rank in the domain; ties are broken by id.
      first: whether it is chosen before any draw.
    """

    id: str
    domain: str
    order: tuple[float, ...] = ()
    first: bool = False

    @property
    def key(self) -> tuple[tuple[float, ...], str]:
        """Sorts the rows of a domain by rank."""
        return self.order, self.id


@dataclasses.dataclass(frozen=True)
class Pick:
    """A chosen row.

    Attributes:
      id: of the row.
      domain: that it was drawn from.
      rank: among the rows that were left, from 1; 0 if it was chosen before any draw.
    """

    id: str
    domain: str
    rank: int


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was drawn.

    Attributes:
      picks: rows in the order of the draws; the first n of them are the selection of size n where nothing is chosen
        before the draws and all draws are of one kind.
      lost: draws of rows that had been chosen before any draw.
      dry: domains that ran out of rows.
    """

    picks: tuple[Pick, ...]
    lost: int
    dry: tuple[str, ...]


def bits(*parts: object) -> int:
    """Returns 256 random bits that depend on the parts alone."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


def uniform(count: int, *parts: object) -> int:
    """Returns a number of 0 to `count` - 1, each as probable as the others."""
    return bits(*parts) * count >> 256


def rank(left: int, *parts: object) -> int:
    """Returns a rank of 1 to `left`, rank j with a probability in proportion to 2^-j.

    The number of leading zeros of random bits is geometric. A rank beyond `left` is drawn again, which leaves the
    proportions of the others as they are.
    """
    for attempt in itertools.count():
        drawn = MOST_RANK - bits(*parts, attempt).bit_length()
        if drawn <= left:
            return drawn
    raise AssertionError


def shuffled(seed: int, row_id: str) -> float:
    """Returns a number of 0 to 1 for the place of a row in a random order."""
    return (bits(seed, "order", row_id) >> 192) / 2**64


def select(
    candidates: Iterable[Candidate],
    size: int,
    seed: int,
    *,
    by_rank: bool = True,
    mix_after: int | None = None,
    mix: Mapping[str, float] | None = None,
) -> Selection:
    """Chooses rows.

    Args:
      candidates: in any order. Of a domain the first `size` + `MOST_RANK` by `Candidate.key` suffice.
      size: number of rows to choose; fewer are chosen if there are not so many.
      seed: another seed gives another set.
      by_rank: whether draws within a domain are weighted by 2^-rank; otherwise they take the first row that is left.
      mix_after: from so many chosen rows on, domains are drawn by `mix`; None: never.
      mix: domain -> weight; domains without one are not drawn.
    """
    domains: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        domains.setdefault(candidate.domain, []).append(candidate)
    for rows in domains.values():
        rows.sort(key=lambda candidate: candidate.key)
    first = sorted((row for rows in domains.values() for row in rows if row.first), key=lambda row: row.id)
    first.sort(key=lambda row: shuffled(seed, row.id))
    picks = [Pick(row.id, row.domain, 0) for row in first[:size]]
    chosen = {pick.id for pick in picks}
    drawn: dict[str, int] = dict.fromkeys(domains, 0)
    left = sorted(domains)
    lost, dry = 0, []
    for number in itertools.count():
        if len(picks) >= size or not left:
            break
        mixed = mix_after is not None and len(picks) >= mix_after
        domain = _domain(left, mix if mixed else None, seed, number)
        rows, i = domains[domain], drawn[domain]
        drawn[domain] += 1
        place = rank(len(rows), seed, "rank", domain, i) if by_rank else 1
        row = rows.pop(place - 1)
        if not rows:
            left.remove(domain)
            dry.append(domain)
        if row.id in chosen:
            lost += 1
            continue
        chosen.add(row.id)
        picks.append(Pick(row.id, domain, place))
    return Selection(tuple(picks), lost, tuple(dry))


def _domain(left: Sequence[str], mix: Mapping[str, float] | None, seed: int, number: int) -> str:
    """Draws a domain out of those with rows left: uniformly, or by the weights of a mix."""
    weighted = [domain for domain in left if (mix or {}).get(domain, 0) > 0]
    if mix is None or not weighted:
        return left[uniform(len(left), seed, "domain", number)]
    sums = list(itertools.accumulate(mix[domain] for domain in weighted))
    point = bits(seed, "domain", number) / 2**256 * sums[-1]
    return weighted[min(bisect.bisect_right(sums, point), len(weighted) - 1)]
