"""Drops rows whose question stands in an evaluation set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from s1jax.curation.ngrams import Index, ngrams
from s1jax.curation.overlap import Overlap
from s1jax.curation.row import Drop, Row
from s1jax.curation.words import EXACT, FORMS, size
from s1jax.errors import UserError

MATCHES = ("any", "share", "equal")
_SHOWN = 24  # words of an evaluation question in the evidence


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
      match: `any`: one n-gram in common drops the row. `share`: a share of the n-grams of the evaluation question or of
        the row drops it, wherever they stand (`s1jax.curation.overlap`). `equal`: all words are equal, in order.
      n: words in an n-gram.
      short: evaluation questions of fewer words (numbers and single letters are not counted) drop only rows that have
        exactly their words, numbers included: they may be exercises that many have written. By `share` at least so
        many words have to be in common. 0: they have no rule of their own, so those of fewer than n words are never
        found, as in s1's rule.
      share: of the n-grams that have to be in common for `share`, if the question has `long` words or more; the share
        rises to all of them at `short` words.
      long: see `share`.
      common: n-grams that stand in at least so many different evaluation questions are phrases or instructions, and
        drop nothing by `any`; 0: all count. (`share` weighs them.)
    """

    words: str = "skeleton"
    match: str = "share"
    n: int = 3
    short: int = 8
    share: float = 0.5
    long: int = 30
    common: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("words", self.words, FORMS), ("match", self.match, MATCHES)):
            if value not in known:
                raise UserError(f"{name}={value!r} of decontamination is unknown; choose from {', '.join(known)}.")
        if not (self.n >= 1 and self.short >= 0 and self.common >= 0 and 0 < self.share <= 1):
            raise UserError(
                f"Decontamination with n={self.n}, short={self.short}, common={self.common}, share={self.share}:"
                " give n of at least 1, short and common of at least 0, and a share of more than 0 and at most 1."
            )


# As released with s1; as the README of Light-R1 describes it; ours.
S1 = Decontamination(words="white_space", match="any", n=8, short=0)
LIGHT_R1 = (
    Decontamination(words="without_digits", match="equal", short=0),
    Decontamination(words="letters", match="any", n=32, short=0),
)
OURS = Decontamination()


class Decontaminate:
    """The rule: a pure function of a row, once the evaluation questions are read."""

    name = "decontamination"

    def __init__(self, settings: Decontamination, against: Sequence[Evaluated]):
        """Reads the evaluation questions.

        Args:
          settings: how questions are compared.
          against: every question that a row may not hold. Questions that are equal in these words are one, so a
            question of two sets is not taken for a phrase.

        Raises:
          UserError: there is nothing to compare with.
        """
        if not against:
            raise UserError("Decontamination has no evaluation questions; name at least one file to compare with.")
        self.settings = settings
        self._words = FORMS[settings.words]
        self._exact_words = FORMS[EXACT.get(settings.words, settings.words)]
        self._short: dict[tuple[str, ...], Evaluated] = {}
        different: dict[tuple[str, ...], Evaluated] = {}
        for one in against:
            words = tuple(self._words(one.question))
            if size(words) < settings.short:
                self._short.setdefault(tuple(self._exact_words(one.question)), one)
            else:
                different.setdefault(words, one)
        for empty in (self._short, different):
            empty.pop((), None)
        self._questions = list(different.values())
        self._numbers = {words: i for i, words in enumerate(different)} if settings.match == "equal" else {}
        self._index = Index(different if settings.match == "any" else (), settings.n)
        held = list(different) if settings.match == "share" else ()
        self._overlap = Overlap(held, settings.n, settings.share, settings.short, settings.long)

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; its evidence names set, row and words of the evaluation question."""
        words = self._words(row.question)
        if size(words) < self.settings.short:
            exact = tuple(self._exact_words(row.question))
            if exact in self._short:
                return self._drop("equals a short evaluation question", self._short[exact], exact)
        if self.settings.match == "equal":
            number = self._numbers.get(tuple(words))
            return None if number is None else self._drop("equals an evaluation question", number, words)
        if self.settings.match == "any":
            return self._any(words)
        found = self._overlap.find(words)
        if found is None:
            return None
        return self._drop("holds an evaluation question", found.number, found.words, f" ({found.share:.0%} in common)")

    def _any(self, words: Sequence[str]) -> Drop | None:
        for gram in ngrams(words, self.settings.n):
            holders = self._index.holders(gram)
            if holders and not 0 < self.settings.common <= len(holders):
                return self._drop(f"shares {self.settings.n} words with an evaluation question", holders[0], gram)
        return None

    def _drop(self, reason: str, question: int | Evaluated, words: Sequence[str], share: str = "") -> Drop:
        one = self._questions[question] if isinstance(question, int) else question
        text = " ".join(words[:_SHOWN]) + (" ..." if len(words) > _SHOWN else "")
        return Drop(self.name, reason, f"{one.set}, {one.row}{share}: {text}")
