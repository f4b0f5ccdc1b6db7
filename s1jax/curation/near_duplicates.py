"""Drops questions that are nearly the same as another one, and sets those aside that differ in numbers.

One changed number in a problem of 60 words leaves the Jaccard similarity of its n-grams at 0.87 to 0.96: each threshold
in use calls such a pair duplicates, although the problems have different answers. So the words are compared without
their numbers, and the numbers separately: pairs with the same numbers in the same order are near-duplicates, the others
are variants of one template, a class of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from s1jax.curation.answers import question_of
from s1jax.curation.minhash import MinHash
from s1jax.curation.ngrams import Gram, ngrams
from s1jax.curation.row import Drop, Row
from s1jax.curation.words import is_number, size, unmarked, without_numbers
from s1jax.errors import UserError

NAME = "near_duplicates"
_MARK = re.compile(
    r"^\W*(?:(?:problem|question|exercise|example|ex|q|no)\W{0,2}\d{1,4}\b\W*|\(?\d{1,4}[.)]\s+)", re.IGNORECASE
)
_OPERATORS = re.compile(r"[-+*/^=<>!×÷·±≤≥≠]|\\(?:times|cdot|div|pm|d?frac|sqrt|leq?|geq?|neq?)(?![a-z])")


@dataclasses.dataclass(frozen=True)
class Text:
    """What is compared of a question.

    Attributes:
      id: of the question.
      words: its words without numbers, with spaces between.
      facts: 16 bytes that stand for its numbers in their order; of a short question for the operators as well, because
        "3 + 5" and "3 - 5" have the same words and numbers.
      signature: of the n-grams; empty where there are none.
    """

    id: str
    words: str
    facts: bytes
    signature: bytes


class Pair(NamedTuple):
    """Two questions that are nearly the same."""

    first: str  # the smaller id
    second: str
    template: bool  # whether their numbers differ


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """The rule: a function of the set of rows, whatever their order.

    On a cluster, group rows by each of `keys`, look for `pairs` in each group, and give all pairs to `drops` on one
    machine. `__call__` does the same in one process. All answers of a question are kept or dropped together.

    Attributes:
      similarity: of n-grams from which two questions are nearly the same, more than 0 and at most 1.
      template: `keep` keeps questions that differ in numbers, `one` keeps one of each template.
      n: words in an n-gram.
      short: questions of fewer words are nearly the same only if their operators are the same, too.
      bands: of the signatures, and
      rows: in each band. With 25 and 5 a pair of similarity 0.8 is missed with probability 5e-5.
    """

    similarity: float = 0.8
    template: str = "keep"
    n: int = 3
    short: int = 8
    bands: int = 25
    rows: int = 5

    name = NAME

    def __post_init__(self) -> None:
        if self.template not in ("keep", "one"):
            raise UserError(f"template={self.template!r} of near-duplicates is unknown; choose keep or one.")
        if not 0 < self.similarity <= 1 or min(self.n, self.bands, self.rows) < 1:
            raise UserError(
                f"Near-duplicates with similarity={self.similarity}, n={self.n}, bands={self.bands}, rows={self.rows}:"
                " give a similarity of more than 0 and at most 1, and 1 or more of the others."
            )

    def __call__(self, rows: Sequence[Row]) -> tuple[list[Row], dict[str, Drop]]:
        """Returns the rows that are kept, in their order, and id -> why the others are dropped."""
        drops = self.of({question_of(row): self.text(row) for row in rows}.values())
        by_row = {row.id: drops[question_of(row)] for row in rows if question_of(row) in drops}
        return [row for row in rows if row.id not in by_row], by_row

    def of(self, texts: Collection[Text]) -> dict[str, Drop]:
        """Returns id of a question -> why it is dropped."""
        found: list[Pair] = []
        known = _Sets(), _Sets()
        for number in range(self.bands * (1 + (self.template == "one"))):  # one by one, to hold few groups at a time
            groups: dict[bytes, list[Text]] = {}
            for text in texts:
                if text.signature:
                    groups.setdefault(self._key(text, number), []).append(text)
            for group in groups.values():
                if len(group) > 1:
                    found += self.pairs(group, known)
        return self.drops(found)

    def text(self, row: Row) -> Text:
        """Returns what is compared of a row."""
        question = _MARK.sub("", row.question)
        exact = unmarked(question)
        words = without_numbers(exact)
        facts = [word for word in exact if is_number(word)]
        if size(words) < self.short:
            facts += ["", *_OPERATORS.findall(question)]
        joined = " ".join(words)
        signature = _minhash(self.bands, self.rows).signature(_grams(joined, self.n)) if words else b""
        digest = hashlib.sha256("\x1f".join(facts).encode("utf-8", "surrogatepass")).digest()[:16]
        return Text(question_of(row), joined, digest, signature)

    def keys(self, text: Text) -> list[bytes]:
        """Returns keys of a few bytes: texts that may be a pair have one in common. None for a text without words.

        Numbers are a part of the keys, so the many variants of a template are in many groups; with `template="one"`
        there are as many keys again without numbers.
        """
        if not text.signature:
            return []
        return [self._key(text, number) for number in range(self.bands * (1 + (self.template == "one")))]

    def _key(self, text: Text, number: int) -> bytes:
        start = 4 * self.rows * (number % self.bands)
        band = text.signature[start : start + 4 * self.rows]
        return bytes([number % 256]) + band + (text.facts if number < self.bands else b"")

    def pairs(self, group: Sequence[Text], known: tuple[_Sets, _Sets] | None = None) -> list[Pair]:
        """Returns pairs of a group that are nearly the same, enough of them to connect all that are connected.

        Args:
          group: texts that have a key in common.
          known: what pairs of other groups connect, near-duplicates and templates; such texts are not compared again.
            Gets the new pairs.
        """
        template = any(text.facts != group[0].facts for text in group)
        sets = (known or (_Sets(), _Sets()))[template]
        parts: list[list[Text]] = []  # what is connected in this group
        found = []
        for text in sorted(group, key=lambda text: text.id):
            mine = [text]
            rest = []
            for part in parts:
                other = next((other for other in part if self._is_near(text, other, sets, template)), None)
                if other is None:
                    rest.append(part)
                    continue
                if sets.root(text.id) != sets.root(other.id):
                    sets.join(text.id, other.id)
                    found.append(Pair(min(text.id, other.id), max(text.id, other.id), template))
                mine = [*part, *mine]
            parts = [*rest, mine]
        return found

    def _is_near(self, one: Text, other: Text, sets: _Sets, template: bool) -> bool:
        if sets.root(one.id) == sets.root(other.id):
            return True
        if (one.facts != other.facts) != template:
            return False
        mine, theirs = _grams(one.words, self.n), _grams(other.words, self.n)
        return len(mine & theirs) >= self.similarity * len(mine | theirs) - 1e-9

    def drops(self, found: Iterable[Pair]) -> dict[str, Drop]:
        """Returns id -> why, for all questions of a connected set but the one with the smallest id."""
        near, all_of_them = _Sets(), _Sets()
        ids = set()
        for pair in found:
            ids |= {pair.first, pair.second}
            all_of_them.join(pair.first, pair.second)
            if not pair.template:
                near.join(pair.first, pair.second)
        drops = {}
        for one in sorted(ids):
            if (kept := near.root(one)) != one:
                drops[one] = Drop(NAME, "nearly the same as another question", kept)
            elif (kept := all_of_them.root(one)) != one:
                drops[one] = Drop(NAME, "the same as another question but for numbers", kept)
        return drops


class _Sets:
    """Disjoint sets of ids (union-find); the root of a set is its smallest id."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def root(self, one: str) -> str:
        """Returns the smallest id of the set of an id."""
        path = []
        while (parent := self._parents.get(one, one)) != one:
            path.append(one)
            one = parent
        for below in path:
            self._parents[below] = one
        return one

    def join(self, one: str, other: str) -> None:
        """Makes one set of two."""
        first, second = sorted((self.root(one), self.root(other)))
        if first != second:
            self._parents[second] = first


@functools.lru_cache(maxsize=4096)
def _grams(joined: str, n: int) -> frozenset[Gram]:
    """Returns the n-grams of words with spaces between; all of the words where they are fewer than n."""
    words = joined.split(" ")
    return frozenset(ngrams(words, n)) or frozenset([tuple(words)])


@functools.cache
def _minhash(bands: int, rows: int) -> MinHash:
    return MinHash(bands, rows)
