"""Gives the rows of a pool a column `domain`: the cluster that a question is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s1jax.curation import clusters, reading
from s1jax.data import identity

Named = tuple[str, Mapping[str, Any]]  # what messages call a row (`file:line`), and its columns


def questions(rows: Sequence[Named]) -> list[str]:
    """Returns the question of each row, whatever its shape.

    Raises:
      UserError: a row has none.
    """
    return [reading.row(columns, "deepseek", name)[0].question for name, columns in rows]


def cluster(texts: Sequence[str], vectors: np.ndarray, count: int, seed: int = 0) -> list[str]:
    """Returns the domain of each row: the number of its cluster, with zeros in front so that they sort.

    Args:
      texts: question of each row.
      vectors: [rows, D], see `clusters.assign`.
      count: clusters.
      seed: of their starting points.
    """
    ids = [identity.question_id(text) for text in texts]
    found = clusters.assign(ids, vectors, count, seed)
    return [f"{found[row_id]:0{len(str(count - 1))}}" for row_id in ids]


def summary(domains: Sequence[str | None]) -> str:
    """Returns one line about domains: how many there are, the largest and the smallest."""
    sizes: dict[str, int] = {}
    for domain in domains:
        if domain is not None:
            sizes[domain] = sizes.get(domain, 0) + 1
    ranked = sorted(sizes, key=lambda name: (-sizes[name], name))
    if not ranked:
        return f"{len(domains):,} rows: none has a domain"
    first, last = ranked[0], ranked[-1]
    return (
        f"{sum(sizes.values()):,} of {len(domains):,} rows in {len(ranked):,} domains: the largest is {first} with"
        f" {sizes[first]:,} rows, the smallest {last} with {sizes[last]:,}"
    )
