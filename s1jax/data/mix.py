"""Mixes of sources with weights: how many examples of each an epoch has, and which ones.

`data.source` is then a list `FILE:WEIGHT,FILE:WEIGHT`. The weights are shares of the examples of an epoch, exact but
for rounding. An epoch is as long as the source that is used up first allows, so that none is repeated in it. The other
sources go on in the next epoch where they stopped: over a run, the examples of a source are used equally often, give or
take one. Which examples an epoch has, and in which order, is a function of (seed, epoch) alone.

A list without weights joins the sources: every epoch has every example once.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from s1jax.errors import UserError

_WEIGHTED = re.compile(r"(.+):([0-9.eE+-]+)")


@dataclasses.dataclass(frozen=True)
class Mix:
    """Sources, mostly one.

    Attributes:
      sources: each a source that `s1jax.data.s1k.records` or `s1jax.data.sources` knows.
      weights: of each source, positive, with the sum 1; empty: the sources are joined.
    """

    sources: tuple[str, ...]
    weights: tuple[Fraction, ...] = ()


def parse(source: str) -> Mix:
    """Reads `data.source`. What exists as a file or folder by its whole name is one source.

    Raises:
      UserError: if a list has an empty part, a source twice, weights for some sources only, or a weight that is not
        positive.
    """
    if "," not in source or pathlib.Path(source).exists():
        return Mix((source,))
    found = [_part(part.strip(), source) for part in source.split(",")]
    names = [name for name, _ in found]
    # A file has several spellings: a.jsonl, ./a.jsonl, a link.
    files = [os.path.realpath(name) if os.path.exists(name) else name for name in names]
    twice = [name for i, name in enumerate(names) if files[i] in files[:i]]
    if twice:
        raise UserError(f"data.source {source} names {twice[0]} more than once; give it one weight.")
    weights = [weight for _, weight in found if weight is not None]
    if weights and len(weights) < len(found):
        without = next(name for name, weight in found if weight is None)
        raise UserError(f"data.source {source} gives {without} no weight; give each source one ({without}:1), or none.")
    return Mix(tuple(names), tuple(weight / sum(weights) for weight in weights))


def _part(part: str, source: str) -> tuple[str, Fraction | None]:
    """Returns name and weight of one part of a list."""
    match = None if pathlib.Path(part).exists() else _WEIGHTED.fullmatch(part)
    if not part:
        raise UserError(f"data.source {source} has an empty part; write SOURCE:WEIGHT,SOURCE:WEIGHT.")
    if match is None:
        return part, None
    try:
        weight = Fraction(match[2])  # exact: 0.7 and 0.3 of ten rows are seven and three
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        raise UserError(f"data.source gives {match[1]} the weight {match[2]}; give a positive number, or leave it out.")
    return match[1], weight


def takes(sizes: Sequence[int], weights: Sequence[Fraction]) -> list[int]:
    """Returns how many examples an epoch takes of each source: at least one, at most all of them.

    Args:
      sizes: examples of each source, at least one.
      weights: of each source, positive.
    """
    whole = min(Fraction(size) / weight for size, weight in zip(sizes, weights, strict=True))
    return [min(size, max(1, round(whole * weight))) for size, weight in zip(sizes, weights, strict=True)]


def apportion(count: int, shares: Sequence[int | Fraction], most: Sequence[int]) -> list[int]:
    """Divides a number in proportion to shares, by the largest remainders, at most `most` each.

    Args:
      count: at most the sum of `most`.
      shares: positive.
      most: for each share.
    """
    exact = [count * Fraction(share) / sum(map(Fraction, shares)) for share in shares]
    found = [min(int(value), limit) for value, limit in zip(exact, most, strict=True)]
    by_rest = sorted(range(len(shares)), key=lambda i: (found[i] - exact[i], i))
    while sum(found) < count:
        for i in by_rest:
            if sum(found) < count and found[i] < most[i]:
                found[i] += 1
    return found


def order(seed: int, epoch: int, sizes: Sequence[int], taken: Sequence[int]) -> np.ndarray:
    """Returns the indices of the examples of an epoch in their order, int64 [sum(taken)].

    Args:
      seed: of the run.
      epoch: from 0.
      sizes: examples of each source; those of the first source have the indices 0, ..., sizes[0] - 1, and so on.
      taken: of each source, see `takes`.
    """
    parts, first = [], 0
    for source, (size, count) in enumerate(zip(sizes, taken, strict=True)):
        begin = epoch * count
        passes = range(begin // size, -(-(begin + count) // size))
        stream = np.concatenate([ranks(seed, number, source + 1, size) for number in passes])
        parts.append(first + stream[begin - passes.start * size :][:count])
        first += size
    chosen = np.concatenate(parts)
    return chosen[ranks(seed, epoch, 0, len(chosen))]


def ranks(seed: int, number: int, stream: int, count: int) -> np.ndarray:
    """Returns a permutation, int64 [count]; stream 0 is `s1jax.data.batches.order`."""
    key = np.array([seed % 2**64, number], np.uint64)
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(count), kind="stable")
