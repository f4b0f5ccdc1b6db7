"""An index of the word n-grams of evaluation questions.

Keys are the words themselves: Python's dict finds them by a 64-bit hash, then compares the words. A hash alone is not
enough: with 32 bits, 3.4 million n-grams of clean rows met an index of 62,000 by accident 43 times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Gram = tuple[str, ...]


def ngrams(words: Sequence[str], n: int) -> Iterator[Gram]:
    """Yields all runs of n words in their order; none if there are fewer than n words."""
    return zip(*(words[start:] for start in range(n)), strict=False)


class Index:
    """Which texts hold an n-gram.

    Texts of fewer than n words have no n-gram; they can be found as a whole.
    """

    def __init__(self, texts: Iterable[Sequence[str]], n: int):
        """Reads the texts.

        Args:
          texts: words of each text; a text's number is its place here, from 0.
          n: words in an n-gram.
        """
        self.n = n
        self._holders: dict[Gram, tuple[int, ...]] = {}
        self._short: dict[Gram, tuple[int, ...]] = {}
        for number, words in enumerate(texts):
            alone = (number,)  # one object for all n-grams of this text: most n-grams stand in one text
            if len(words) < n:
                self._add(self._short, tuple(words), alone)
            for gram in set(ngrams(words, n)):
                self._add(self._holders, gram, alone)

    @staticmethod
    def _add(holders: dict[Gram, tuple[int, ...]], gram: Gram, alone: tuple[int, ...]) -> None:
        found = holders.get(gram)
        holders[gram] = alone if found is None else found + alone

    def __len__(self) -> int:
        return len(self._holders)

    def holders(self, gram: Gram) -> tuple[int, ...]:
        """Numbers of the texts that hold an n-gram, ascending."""
        return self._holders.get(gram, ())

    def find(self, words: Sequence[str]) -> list[Gram]:
        """Returns the n-grams of a text that the index holds, in their order."""
        holders = self._holders
        return [gram for gram in ngrams(words, self.n) if gram in holders]

    def find_short(self, words: Sequence[str]) -> tuple[int, ...]:
        """Numbers of the texts of fewer than n words that consist of exactly these words, ascending."""
        return self._short.get(tuple(words), ()) if len(words) < self.n else ()
