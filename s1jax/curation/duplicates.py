"""Keeps one row for each id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from s1jax.curation.row import Drop, Row

NAME = "duplicates"


def order(row: Row) -> tuple[bool, str, str]:
    """Sorts rows of one id: the first one is kept, whatever the order that they were read in.

    Rows with a trace go before questions alone; then a hash of the texts decides, then the place a row was read from.
    """
    texts = "\0".join((row.question, row.trace, row.answer)).encode("utf-8", "surrogatepass")
    return not row.trace, hashlib.sha256(texts).hexdigest(), row.name


def exact(rows: Iterable[Row]) -> tuple[list[Row], list[tuple[Row, Drop]]]:
    """Keeps one row for each id.

    Args:
      rows: in any order. A question has one id in every file (`s1jax.data.identity.question_id`); the K-th answer of
        a question has an id of its own and stays.

    Returns:
      The rows kept, ascending by id; and the rows dropped, each with its reason. They are pairs because a dropped row
      has the id of a kept one.
    """
    kept: dict[str, Row] = {}
    dropped: list[Row] = []
    for row in rows:
        other = kept.get(row.id)
        if other is None:
            kept[row.id] = row
            continue
        first, second = sorted((row, other), key=order)
        kept[row.id] = first
        dropped.append(second)
    pairs = [(row, Drop(NAME, "the same question as another row", kept[row.id].name)) for row in dropped]
    return [kept[key] for key in sorted(kept)], sorted(pairs, key=lambda pair: (pair[0].id, order(pair[0])))
