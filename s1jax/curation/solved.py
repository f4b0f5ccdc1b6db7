"""Drops questions that the student solves already, by its pass rate."""

from __future__ import annotations

from s1jax.curation.row import Drop, Row
from s1jax.curation.steps import Step

NAME = "difficulty"


def step(most: float) -> Step:
    """Returns the rule that drops questions with a pass rate above `most`."""

    def rule(row: Row) -> Drop | None:
        rate = float(row.columns["pass_rate"])
        if rate <= most:
            return None
        tries = row.columns.get("pass_tries")
        often = f" of {tries} tries" if tries is not None else ""
        return Drop(NAME, f"the student's pass rate is above {most:g}", f"{rate:.3g}{often}")

    return Step(NAME, row=rule, needs=("pass_rate",), settings={"most": most})


def ever() -> Step:
    """s1's rule: a question is dropped if the student was right once."""
    return step(0.0)


def always() -> Step:
    """Ours: a question is dropped if the student was right each time; the others differ in how early they are drawn."""

    def rule(row: Row) -> Drop | None:
        rate = float(row.columns["pass_rate"])
        if rate < 1:
            return None
        return Drop(NAME, "the student is right each time", f"{row.columns.get('pass_tries', 'all')} tries")

    return Step(NAME, row=rule, needs=("pass_rate",), settings={"below": 1.0})
