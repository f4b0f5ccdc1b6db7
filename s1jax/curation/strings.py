"""Drops questions with strings that show a figure or several parts: `data/filter.ipynb` of s1 has the list."""

from __future__ import annotations

import dataclasses
import re

from s1jax.curation.row import Drop, Row

_PART_ANYWHERE = re.compile(r"p[1-9]\d{0,2}\.")
_PART = re.compile(r"(?<!\w)p[1-9]\d{0,2}\.(?!\d)")
# In s1, the digit may stand anywhere in the rest of the line, also after the bold text.
_BOLD_BEFORE_DIGIT = re.compile(r"\*\*(?=.*\d)[^\s\]]*\*\*")
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
        part, bold = (_PART_ANYWHERE, _BOLD_BEFORE_DIGIT) if self.as_released else (_PART, _BOLD_DIGIT)
        for reason, pattern in (("numbers of parts (p1.)", part), ("bold text with a digit", bold)):
            if found := pattern.search(question):
                return self._drop(reason, question, found.start())
        return None

    def _drop(self, reason: str, question: str, place: int) -> Drop:
        return Drop(self.name, reason, " ".join(question[max(0, place - 20) : place + 40].split()))
