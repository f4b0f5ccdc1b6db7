"""Gives the rows of a pool a column `domain`: the cluster that a question is in."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from s1jax.curation import clusters, reading, word_vectors
from s1jax.curation.measurement import Columns, Named, Note
from s1jax.data import identity


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Measures `domain` as the cluster that a question is in.

    Attributes:
      count: clusters.
      encode: texts -> vectors [texts, D]; by default the weights of their words, which needs no model. It gets
        each different question once, sorted by id, so that the order of rows changes nothing.
      seed: of the starting points.
    """

    count: int
    encode: Callable[[Sequence[str]], np.ndarray] = word_vectors.embed
    seed: int = 0

    def __call__(self, rows: Sequence[Named], out: pathlib.Path, note: Note) -> Columns:
        """See `s1jax.curation.measurement.Measurement`."""
        texts = questions(rows)
        ids = [identity.question_id(text) for text in texts]
        different = dict(sorted(zip(ids, texts, strict=True)))
        found = clusters.assign(list(different), self.encode(list(different.values())), self.count, self.seed)
        width = len(str(self.count - 1))  # zeros in front, so that numbers sort
        return columns([f"{found[row_id]:0{width}}" for row_id in ids])


def columns(domains: Sequence[str | None]) -> Columns:
    """Returns the column `domain` of rows."""
    return Columns([{"domain": domain} for domain in domains], summary(domains))


def questions(rows: Sequence[Named]) -> list[str]:
    """Returns the question of each row, whatever its shape.

    Raises:
      UserError: a row has none.
    """
    return [reading.row(columns, "deepseek", name)[0].question for name, columns in rows]


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
