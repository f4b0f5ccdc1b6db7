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
    """Which texts hold an n-gram."""

    def __init__(self, texts: Iterable[Sequence[str]], n: int):
        """Reads the texts.

        Args:
          texts: words of each text; a text's number is its place here, from 0. A text of fewer than n words has no
            n-gram.
          n: words in an n-gram.
        """
        self.n = n
        self._holders: dict[Gram, tuple[int, ...] | list[int]] = {}
        self._texts: list[tuple[Gram, ...]] = []
        shared: dict[Gram, Gram] = {}  # one object for an n-gram of many texts
        for number, words in enumerate(texts):
            alone = (number,)  # one object for all n-grams of this text: most n-grams stand in one text
            grams = tuple(shared.setdefault(gram, gram) for gram in dict.fromkeys(ngrams(words, n)))
            self._texts.append(grams)
            for gram in grams:
                found = self._holders.setdefault(gram, alone)
                if isinstance(found, list):
                    found.append(number)
                elif found is not alone:
                    self._holders[gram] = [*found, number]

    def __len__(self) -> int:
        return len(self._holders)

    def holders(self, gram: Gram) -> Sequence[int]:
        """Numbers of the texts that hold an n-gram, ascending."""
        return self._holders.get(gram, ())

    def grams(self, number: int) -> tuple[Gram, ...]:
        """Returns the different n-grams of a text, in the order of their first places."""
        return self._texts[number]
