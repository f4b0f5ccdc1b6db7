"""Drops questions with strings that show a figure or several parts: `data/filter.ipynb` of s1 has the list."""

from __future__ import annotations

import dataclasses
import re

from s1jax.curation.row import Drop, Row

_PART_ANYWHERE = re.compile(r"p[1-9]\d{0,2}\.")
_PART = re.compile(r"(?<!\w)p[1-9]\d{0,2}\.(?!\d)")
_DIGIT = re.compile(r"\d")
_RUN = re.compile(r"[^\s\]]+")
_BOLD_DIGIT = re.compile(r"\*\*(?=[^*\n]*\d)[^*\s\]]+\*\*")


@dataclasses.dataclass(frozen=True)
class Strings:
    """The rule: a pure function of a row.

    Dropped are questions with `[asy]` or `![Image]` (a figure), `p1.` to `p999.` (a problem of several parts), or bold
    text with a digit (the number of a part). Rows whose column `source_type` names AIME may have `[asy]`.

    Attributes:
      as_released: exactly as s1's notebook: `p1.` counts inside of words as well, such as in `step1.` and `exp2.`; the
        digit may stand anywhere after the beginning of bold text; rows of AIME with `[asy]` skip all tests. Otherwise
        only `p1.` as a word counts, and only a digit in the bold text.
    """

    as_released: bool = False

    name = "strings"

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; the evidence is the string with what stands around it."""
        question = row.question
        if "[asy]" in question:
            if "AIME" not in str(row.columns.get("source_type", "")):
                return self._drop("a figure in Asymptote", question, question.index("[asy]"))
            if self.as_released:
                return None
        if "![Image]" in question:
            return self._drop("an image", question, question.index("![Image]"))
        if part := (_PART_ANYWHERE if self.as_released else _PART).search(question):
            return self._drop("numbers of parts (p1.)", question, part.start())
        bold = _bold_before_digit(question) if self.as_released else _bold_digit(question)
        return None if bold is None else self._drop("bold text with a digit", question, bold)

    def _drop(self, reason: str, question: str, place: int) -> Drop:
        return Drop(self.name, reason, " ".join(question[max(0, place - 20) : place + 40].split()))


def _bold_digit(text: str) -> int | None:
    found = _BOLD_DIGIT.search(text)
    return found and found.start()


def _bold_before_digit(text: str) -> int | None:
    r"""Returns where `\*\*(?=.*\d)[^\s\]]*\*\*` matches first, in time linear in the length of the text."""
    start = 0
    for line in text.split("\n"):
        last_digit = max((digit.start() for digit in _DIGIT.finditer(line)), default=-1)
        for run in _RUN.finditer(line):
            opened, closed = run[0].find("**"), run[0].rfind("**")
            if closed >= opened + 2 and last_digit >= run.start() + opened + 2:
                return start + run.start() + opened
        start += len(line) + 1
    return None
