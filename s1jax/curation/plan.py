"""What a teacher's answers cost: to all questions of a pool, to those that are left, to those that are chosen."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from s1jax.curation.row import Row

_FEW = 5  # answers with known lengths that a class of difficulty needs for a mean of its own


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one group of questions, one answer to each.

    Attributes:
      rows: questions.
      tokens: that the teacher writes.
      error: standard error of `tokens`; 0 where all are known or the mean was given.
      dollars: at the price that was given; 0 without a price.
    """

    rows: int
    tokens: float
    error: float
    dollars: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Costs of groups of questions.

    Attributes:
      known: rows with a known number of tokens.
      given: mean that was given instead; 0: none was.
      dollars_per_million: price of a million tokens that a teacher writes.
      costs: group -> its cost.
    """

    known: int
    given: float
    dollars_per_million: float
    costs: Mapping[str, Cost]


def tokens_of(row: Row) -> float | None:
    """Returns the tokens of a teacher's answer; None if they are not known."""
    for name in ("completion_tokens", "trace_tokens"):
        if (value := row.columns.get(name)) is not None:
            return float(value)
    return None


def plan(
    pool: Sequence[Row], groups: Mapping[str, Sequence[Row]], given: float = 0.0, dollars_per_million: float = 0.0
) -> Plan | None:
    """Estimates costs.

    A row that has an answer counts with the tokens of that answer. The others count with the mean of the rows of the
    pool that have one, taken separately for each tenth of the pass rate, because answers to hard questions are longer.
    So a few hundred answers to questions that were drawn at random make a plan for all of them.

    Args:
      pool: all rows as read.
      groups: name -> rows.
      given: mean tokens of an answer, for rows without one; 0: as measured.
      dollars_per_million: price of a million tokens that a teacher writes; 0: not known.

    Returns:
      None if no row has an answer and no mean was given.
    """
    lengths: dict[int, list[float]] = {}
    for row in pool:
        if (tokens := tokens_of(row)) is not None:
            lengths.setdefault(_class(row), []).append(tokens)
    everything = [tokens for some in lengths.values() for tokens in some]
    if not everything and not given:
        return None
    costs = {}
    for name, rows in groups.items():
        total, missing = 0.0, dict.fromkeys(map(_class, rows), 0)
        for row in rows:
            tokens = tokens_of(row)
            if tokens is None:
                missing[_class(row)] += 1
            else:
                total += tokens
        variance = 0.0
        for kind, count in missing.items():
            own = lengths.get(kind, [])
            sample = own if len(own) >= _FEW else everything
            if given:
                total += count * given
            elif count:
                total += count * statistics.fmean(sample)
                variance += count**2 * _variance(sample) / len(sample) + count * _variance(sample)
        costs[name] = Cost(len(rows), total, math.sqrt(variance), total * dollars_per_million / 1e6)
    return Plan(len(everything), given, dollars_per_million, costs)


def _variance(sample: Sequence[float]) -> float:
    return statistics.variance(sample) if len(sample) > 1 else 0.0


def _class(row: Row) -> int:
    rate = row.columns.get("pass_rate")
    return -1 if rate is None else math.ceil(10 * float(rate))
