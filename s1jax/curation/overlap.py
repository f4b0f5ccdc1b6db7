"""Finds the evaluation question that a text holds, wherever it stands in the text.

A question is held if at least a share of its n-grams is in the text, or of the text's n-grams in the question. An
n-gram that stands in d of N questions weighs log((N + 1) / d), so instructions and phrases that many have in common
count for little. Of a short question more has to be there, because it may be an exercise that many have written. (Both
thoughts are allenai/decon's.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from s1jax.curation.ngrams import Gram, Index, ngrams
from s1jax.curation.words import size

# N-grams of more questions than this do not lead from a text to a question, because looking all of them up takes long.
# They count where another n-gram leads there.
_MOST_HOLDERS = 64
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Found:
    """A question that a text holds.

    Attributes:
      number: of the question.
      share: weight of the n-grams in common, as a part of the weight of the question's or the text's, whichever part is
        larger; 0 to 1.
      words: the longest run of words that both have, as far as n-grams show it.
    """

    number: int
    share: float
    words: tuple[str, ...]


class Overlap:
    """Questions that can be looked up by what a text has in common with them."""

    def __init__(self, questions: Sequence[Sequence[str]], n: int, share: float, short: int, long: int):
        """Reads the questions.

        Args:
          questions: words of each question; its number is its place here.
          n: words in an n-gram.
          share: of the n-grams that must be in common, more than 0 and at most 1, if the question (or the text that it
            holds) has a size of `long` or more (`s1jax.curation.words.size`). It rises linearly to 1 at `short`.
          short: words that must be in common at least. Where a question holds the text, their n-grams must weigh as
            much as if only one question had them; else it would hold every text that consists of common phrases.
          long: see `share`.
        """
        self._index = Index(questions, n)
        self._share, self._short, self._long = share, short, max(long, short + 1)
        self._least = max(1, short - n + 1)
        self._most = math.log(len(questions) + 1)
        # By the number of questions that hold an n-gram; one that none holds weighs as much as one that one holds.
        self._by_count = [self._most - math.log(max(1, count)) for count in range(len(questions) + 1)]
        self._needed = [self._least_share(words) for words in questions]
        self._weights = [sum(map(self._weight, self._index.grams(i))) for i in range(len(questions))]
        self._holds = [
            part * all_of_it - _ROUNDING for part, all_of_it in zip(self._needed, self._weights, strict=True)
        ]
        self._leads = self._leading()

    def _weight(self, gram: Gram) -> float:
        return self._by_count[len(self._index.holders(gram))]

    def _least_share(self, words: Sequence[str]) -> float:
        missing = (self._long - size(words)) / (self._long - self._short)
        return self._share + (1 - self._share) * min(max(missing, 0.0), 1.0)

    def _leading(self) -> dict[Gram, tuple[int, ...]]:
        """Returns n-gram -> the questions to which it leads.

        Those are all questions that hold it, if they are few. Of the others, n-grams lead to a question if they are
        among its rarest, which together weigh more than what a text that holds the question may lack: such a text has
        one of them.
        """
        leads: dict[Gram, list[int]] = {}
        for number, share in enumerate(self._needed):
            missing = (1 - share) * self._weights[number]
            for gram in sorted(self._index.grams(number), key=self._weight, reverse=True):
                if missing < -_ROUNDING and len(self._index.holders(gram)) > _MOST_HOLDERS:
                    break
                leads.setdefault(gram, []).append(number)
                missing -= self._weight(gram)
        return {gram: tuple(numbers) for gram, numbers in leads.items()}

    def find(self, words: Sequence[str]) -> Found | None:
        """Returns the question that has the largest share in common with a text; the first one of several."""
        grams = list(ngrams(words, self._index.n))
        different = set(grams)
        whole = other = 0.0  # weight of all n-grams; of those that do not lead to all questions that hold them
        weights: dict[int, float] = {}  # of the n-grams that lead to a question, by question
        for gram in different:
            count = len(self._index.holders(gram))
            weight = self._by_count[count]
            whole += weight
            if count:
                if count > _MOST_HOLDERS:
                    other += weight
                for number in self._leads.get(gram, ()):
                    weights[number] = weights.get(number, 0.0) + weight
        held = max(self._least_share(words) * whole, self._least * self._most) - _ROUNDING
        best = 0.0, 0
        for number, weight in weights.items():
            holds = self._holds[number]
            if weight + other < held and weight + other < holds:
                continue
            common = different.intersection(self._index.grams(number))
            if len(common) < self._least:
                continue
            both = sum(map(self._weight, common))
            if both >= holds:
                best = max(best, (both / self._weights[number], -number))
            if both >= held:
                best = max(best, (both / whole, -number))
        if not best[0]:
            return None
        return Found(-best[1], min(best[0], 1.0), self._longest(grams, -best[1]))

    def _longest(self, grams: Sequence[Gram], number: int) -> tuple[str, ...]:
        """Returns the words of the longest run of n-grams that a question has, in the order of the text."""
        own = set(self._index.grams(number))
        best: tuple[str, ...] = ()
        run: tuple[str, ...] = ()
        for gram in grams:
            if gram in own:
                run = (*run, gram[-1]) if run else gram
                best = max(best, run, key=len)
            else:
                run = ()
        return best
