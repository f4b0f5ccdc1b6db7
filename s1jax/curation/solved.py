"""Drops questions that the student solves already, by its pass rate."""

from __future__ import annotations

import dataclasses

from s1jax.curation.row import Drop, Row
from s1jax.curation.steps import Step

NAME = "difficulty"


@dataclasses.dataclass(frozen=True)
class Solved:
    """The rule: a row is dropped if its column `pass_rate` is at least, or above, a bound.

    Attributes:
      bound: a pass rate, 0 to 1.
      above: whether rows with the bound itself are kept.
      reason: of its drops.
    """

    bound: float
    above: bool
    reason: str

    def __call__(self, row: Row) -> Drop | None:
        rate = float(row.columns["pass_rate"])
        if rate < self.bound or (self.above and rate == self.bound):
            return None
        tries = row.columns.get("pass_tries")
        often = f" of {tries} tries" if tries is not None else ""
        return Drop(NAME, self.reason, f"pass rate {rate:.3g}{often}")


def ever() -> Step:
    """s1's rule: a question is dropped if the student was right once."""
    rule = Solved(0.0, above=True, reason="the student is right")
    return Step(NAME, row=rule, needs=("pass_rate",), settings={"above": 0.0})


def always() -> Step:
    """Ours: a question is dropped if the student was right each time; the others differ in how early they are drawn."""
    rule = Solved(1.0, above=False, reason="the student is right each time")
    return Step(NAME, row=rule, needs=("pass_rate",), settings={"from": 1.0})
