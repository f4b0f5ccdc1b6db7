"""Drops questions that give their answer away."""

from __future__ import annotations

import dataclasses
import re

from s1jax.curation.row import Drop, Row
from s1jax.grading import extract

_SIGNS = r"[ \t:=(\[{*$\"'`\\-]*"  # not the end of a sentence: "which answer? 3 apples"
_VERBS = "is|was|are|be|equals?|should|must|will|the|correct|final|option|choice|known|given|namely|boxed|text"
_BETWEEN = rf"{_SIGNS}(?:(?:{_VERBS})\b{_SIGNS}){{0,4}}(?:(?<=[:=])\s*|(?<=[:=]\*\*)\s*)?{_SIGNS}"
_AFTER = r"(?!\w|[.,]\d|\s*(?:decimal|digit|place|significant))"
_LETTER_AFTER = r"[)}*$.]*[ \t]*(?:\n|$)"  # a list of options goes on after its first letter
# Columns with the reference solution: ours and those of GSM8K, MATH and open-r1.
_COLUMNS = ("solution", "final_answer", "answer", "expected_answer")
_LONGEST = 200  # characters of an answer; longer ones are solutions, whose end is looked at instead


@dataclasses.dataclass(frozen=True)
class GivenAnswer:
    """The rule: a pure function of a row.

    A question is dropped if the final answer stands in it right after the word "answer", as in "(answer: 12)" and "the
    answer is $\\frac{1}{2}$". DeepMath-103K found 48 such questions of its own. "Round the answer to 2 places" with the
    answer 2 is kept: only words such as "is" and "equals" may stand between.

    Attributes:
      columns: that hold the reference solution; the first that a row has is used, else the row's own answer. Of a text
        that is longer than 200 characters or has a mark (`\\boxed`, `####`, "Answer:"), the final answer is used.
    """

    columns: tuple[str, ...] = _COLUMNS

    name = "given_answer"

    def __call__(self, row: Row) -> Drop | None:
        """Returns why a row is dropped; the evidence is the text from the word "answer" on."""
        if "answer" not in row.question.lower():
            return None
        answer = self._answer(row)
        if not answer:
            return None
        after = _LETTER_AFTER if len(answer) == 1 and answer.isalpha() else _AFTER
        given = re.compile(rf"{_BETWEEN}(?<![\w.-]){re.escape(answer)}{after}")
        for word in re.finditer(r"(?<![a-z])answers?\b", row.question, re.IGNORECASE):
            if given.match(row.question, word.end(), word.end() + 2 * len(answer) + 100):
                shown = row.question[word.start() : word.end() + len(answer) + 40]
                return Drop(self.name, "the question has the answer in it", " ".join(shown.split()))
        return None

    def _answer(self, row: Row) -> str:
        values = (row.columns.get(column) for column in self.columns)
        text = next((str(value) for value in values if value not in (None, "")), row.answer).strip()
        if len(text) > _LONGEST or extract.marked(text):
            text = extract.extract(text)
        return text.strip().strip("$").strip()
