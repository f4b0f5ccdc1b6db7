"""A task: problems, the answer that a text gives, and whether that answer is right."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # of JSON values


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems and how they are graded.

    Attributes:
      title: with the number of problems, for tables and plots.
      rows: problems, each with a `question` and whatever the functions below need.
      answer: (text of an answer, its row) -> what it answers; None if it answers nothing.
      same: whether two such answers mean the same; a vote counts by it.
      right: (answer, its row) -> whether it is right; None if the comparison did not end (undecided).
      grader: name and version of the grader, for results. Verdicts of another grader are not reused.
      max_thinking_tokens: default limit of runs without a budget.
      max_answer_tokens: default limit of an answer.
      places: file:line of each row, for messages; empty if the rows come from no file.
      notes: sentences on the files taken and left out of a folder.
    """

    title: str
    rows: list[dict[str, Any]]
    answer: Callable[[str, Row], str | None]
    same: Callable[[str, str], bool]
    right: Callable[[str, Row], bool | None]
    grader: str = "exact"
    max_thinking_tokens: int = 4096
    max_answer_tokens: int = 1024
    places: Sequence[str] = ()
    notes: Sequence[str] = ()

    def place(self, number: int) -> str:
        """The name of row `number` in messages."""
        return self.places[number] if self.places else f"problem {number} of {self.title}"

    def grade(self, text: str, row: Row) -> bool | None:
        """Whether the text of an answer is right; None if that is undecided."""
        answer = self.answer(text, row)
        return False if answer is None else self.right(answer, row)

    def mark(self, text: str, row: Row) -> str:
        """Returns a digest of all that a verdict depends on: the grader, the text and the row."""
        about = json.dumps([self.grader, text, row], sort_keys=True)
        return hashlib.sha256(about.encode(errors="surrogatepass")).hexdigest()[:16]
