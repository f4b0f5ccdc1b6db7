"""Drops rows whose question stands in an evaluation set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from s1jax.curation.ngrams import Gram, Index, ngrams
from s1jax.curation.row import Drop, Row
from s1jax.curation.words import FORMS
from s1jax.errors import UserError

MATCHES = ("any", "equal")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One question of an evaluation set.

    Attributes:
      set: name of the set, such as `gsm8k_test`.
      row: where it stands there, such as `gsm8k_test.jsonl:17`.
      question: its text.
    """

    set: str
    row: str
    question: str


@dataclasses.dataclass(frozen=True)
class Decontamination:
    """Settings of the rule.

    Attributes:
      words: what counts as a word, a key of `s1jax.curation.words.FORMS`.
      match: `any`: one n-gram in common drops the row. `equal`: all words are equal, in the same order.
      n: words in an n-gram.
      whole_if_short: evaluation questions of fewer than n words, which have no n-gram, drop rows that have exactly
        their words. s1's rule never finds them.
      common: n-grams that stand in at least so many different evaluation questions are phrases or instructions, and
        drop nothing by `any`; 0 counts all.
    """

    words: str = "letters"
    match: str = "any"
    n: int = 8
    whole_if_short: bool = True
    common: int = 0

    def __post_init__(self) -> None:
        if self.words not in FORMS:
            raise UserError(f"words={self.words!r} of decontamination is unknown; choose from {', '.join(FORMS)}.")
        if self.match not in MATCHES:
            raise UserError(f"match={self.match!r} of decontamination is unknown; choose from {', '.join(MATCHES)}.")
        if self.n < 1 or self.common < 0:
            raise UserError(f"n={self.n} and common={self.common} of decontamination: give n >= 1 and common >= 0.")


S1 = Decontamination(words="white_space", n=8, whole_if_short=False)
LIGHT_R1 = (Decontamination(words="without_digits", match="equal"), Decontamination(words="letters", n=32))


class Decontaminate:
    """The rule: a pure function of a row, once the evaluation questions are read."""

    name = "decontamination"

    def __init__(self, settings: Decontamination, against: Sequence[Evaluated]):
        """Reads the evaluation questions.

        Args:
          settings: how questions are compared.
          against: every question that a row may not hold. The same question in two sets counts as one where n-grams
            of several questions are left out.

        Raises:
          UserError: if there is nothing to compare with.
        """
        if not against:
            raise UserError("Decontamination has no evaluation questions; name at least one file to compare with.")
        self.settings = settings
        self._words = FORMS[settings.words]
        first: dict[tuple[str, ...], Evaluated] = {}
        for one in against:
            first.setdefault(tuple(self._words(one.question)), one)
        first.pop((), None)
        self._questions = list(first.values())
        self._index = Index(first, settings.n)
        self._equal = {words: number for number, words in enumerate(first)} if settings.match == "equal" else {}

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; its evidence names set, row and words of the evaluation question."""
        words = self._words(row.question)
        if self.settings.match == "equal":
            number = self._equal.get(tuple(words))
            return None if number is None else self._drop("equals an evaluation question", number, words)
        if self.settings.whole_if_short:
            for number in self._index.find_short(words):
                return self._drop("equals a short evaluation question", number, words)
        for gram in ngrams(words, self.settings.n):
            holders = self._index.holders(gram)
            if holders and not 0 < self.settings.common <= len(holders):
                return self._drop(f"shares {self.settings.n} words with an evaluation question", holders[0], gram)
        return None

    def _drop(self, reason: str, number: int, words: Sequence[str] | Gram) -> Drop:
        one = self._questions[number]
        return Drop(self.name, reason, f"{one.set}, {one.row}: {' '.join(words)}")
