"""The steps of decontamination: over the pool, and once more as the last gate before rows are written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from s1jax.curation import against
from s1jax.curation.decontamination import S1, Decontaminate, Decontamination, Evaluated
from s1jax.curation.row import Drop, Row
from s1jax.curation.steps import Step

NAME = "decontamination"
# The second finds a question with a list of numbers in another order, which n-grams cannot find.
OURS = (Decontamination(), Decontamination(words="sorted_numbers", match="equal", short=0))
PAPER = (S1,)


class Clean:
    """A rule of one row: no evaluation question is in its question, by any of some settings."""

    def __init__(self, settings: Sequence[Decontamination], questions: Sequence[Evaluated]):
        """`questions` are indexed when the first row is looked at."""
        self._settings, self._questions = tuple(settings), tuple(questions)

    def __reduce__(self) -> tuple[object, ...]:
        return Clean, (self._settings, self._questions)  # the index is made where it is used

    @functools.cached_property
    def _rules(self) -> list[Decontaminate]:
        return [Decontaminate(one, self._questions) for one in self._settings]

    def __call__(self, row: Row) -> Drop | None:
        return next((drop for rule in self._rules if (drop := rule(row)) is not None), None)


def step(settings: Sequence[Decontamination], questions: Sequence[Evaluated]) -> Step:
    """Returns the rule as a step; its settings name sets and a digest of their questions."""
    return Step(
        NAME, row=Clean(settings, questions),
        settings={
            "rules": [dataclasses.asdict(one) for one in settings],
            "against": against.counts(questions),
            "questions": against.key(questions),
        },
    )  # fmt: skip
