"""What a teacher's answers cost: to all questions of a pool, to those that are left, to those that are chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

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

    @property
    def saved(self) -> float:
        """Part of the tokens for the first group that the second does not take, 0 to 1."""
        first, second = list(self.costs.values())[:2]
        return 1 - second.tokens / first.tokens if first.tokens else 0.0


def tokens_of(row: Row) -> float | None:
    """Returns the tokens of a teacher's answer; None if they are not known."""
    for name in ("completion_tokens", "trace_tokens"):
        if (value := row.columns.get(name)) is not None:
            return float(value)
    return None


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Counts of some rows of about the same pass rate; two of them can be added.

    Attributes:
      rows: all of them.
      known: rows whose answer has a known number of tokens.
      total: tokens of these.
      squares: sum of the squares of these.
    """

    rows: int = 0
    known: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Lengths) -> Lengths:
        return Lengths(
            self.rows + other.rows, self.known + other.known, self.total + other.total, self.squares + other.squares
        )

    @property
    def mean(self) -> float:
        """Mean tokens of an answer."""
        return self.total / self.known

    @property
    def variance(self) -> float:
        """Of the tokens of an answer; 0 of fewer than two."""
        if self.known < 2:
            return 0.0
        return max(self.squares - self.total**2 / self.known, 0.0) / (self.known - 1)


Tally = Mapping[int, Lengths]  # class of difficulty -> its lengths


def lengths(row: Row) -> tuple[int, Lengths]:
    """Returns the class of difficulty of one row, and what it adds to the tally of that class."""
    rate, tokens = row.columns.get("pass_rate"), tokens_of(row)
    kind = -1 if rate is None else math.ceil(10 * float(rate))
    return kind, Lengths(1) if tokens is None else Lengths(1, 1, tokens, tokens**2)


def tally(rows: Iterable[Row]) -> Tally:
    """Adds up the lengths of some rows."""
    found: dict[int, Lengths] = {}
    for kind, more in map(lengths, rows):
        found[kind] = found.get(kind, Lengths()) + more
    return found


def plan(pool: Tally, groups: Mapping[str, Tally], given: float = 0.0, dollars_per_million: float = 0.0) -> Plan | None:
    """Estimates costs.

    A row that has an answer counts with the tokens of that answer. The others count with the mean of the rows of the
    pool that have one, taken separately for each tenth of the pass rate, because answers to hard questions are longer.
    So a few hundred answers to questions that were drawn at random make a plan for all of them.

    Args:
      pool: of all rows as read.
      groups: name -> rows.
      given: mean tokens of an answer, for rows without one; 0: as measured.
      dollars_per_million: price of a million tokens that a teacher writes; 0: not known.

    Returns:
      None if no row has an answer and no mean was given.
    """
    everything = sum(pool.values(), Lengths())
    if not everything.known and not given:
        return None
    costs = {}
    for name, group in groups.items():
        total, variance = 0.0, 0.0
        for kind, some in group.items():
            missing = some.rows - some.known
            total += some.total + missing * given
            if missing and not given:
                sample = pool[kind] if pool[kind].known >= _FEW else everything
                total += missing * sample.mean
                # That of the mean, and that of the answers themselves.
                variance += missing**2 * sample.variance / sample.known + missing * sample.variance
        rows = sum(some.rows for some in group.values())
        costs[name] = Cost(rows, total, math.sqrt(variance), total * dollars_per_million / 1e6)
    return Plan(everything.known, given, dollars_per_million, costs)
