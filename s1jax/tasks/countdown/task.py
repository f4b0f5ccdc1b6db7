"""Countdown as tasks: held-out problems whose numbers never occur in training, graded by an exact checker."""

from __future__ import annotations

from typing import Any

from s1jax.errors import UserError
from s1jax.tasks.countdown import four, problems
from s1jax.tasks.task import Row, Task

NAMES = ("countdown", "countdown_easy", "countdown_hard", "countdown_four")


def load(name: str, num_problems: int = 0, split: str = "test") -> Task:
    """Loads a Countdown task.

    Args:
      name: one of `NAMES`.
      num_problems: that many from the front; 0 takes all.
      split: held-out problems, `dev` or `test`.

    Raises:
      UserError: the split has fewer problems.
    """
    if name == "countdown_four":
        rows, kind = four.prompt_rows(split, num_problems), "countdown with four numbers"
    elif name == "countdown_easy":
        rows, kind = [row for row in problems.prompt_rows(split) if not row["hard"]], "easy countdown"
        if num_problems > len(rows):
            raise UserError(f"Countdown's split {split} has {len(rows)} easy problems; {num_problems} were asked for.")
        rows = rows[: num_problems or None]
    else:
        hard = name == "countdown_hard"
        rows, kind = problems.prompt_rows(split, num_problems, hard=hard), "hard countdown" if hard else "countdown"
    title = f"{kind} ({split}), {len(rows)} held-out problems"
    return graded(name, title, rows)


def graded(name: str, title: str, rows: list[dict[str, Any]]) -> Task:
    """Returns problems as a task; each has `question`, `numbers` and `target`."""
    # Four numbers have many more first moves, and a search tries them one after the other.
    thinking = 768 if name == "countdown_four" else 384
    return Task(title, rows, _expression, _same_value, _solves, "countdown, exact", thinking, 24)


def problem(columns: Row, where: str) -> dict[str, Any]:
    """Returns the problem that a row is.

    Args:
      columns: `question`, `numbers` (whole numbers) and `target` (a whole number); others are left out.
      where: what messages call the row.

    Raises:
      UserError: one of them is missing or something else.
    """
    question, numbers, target = (columns.get(name) for name in ("question", "numbers", "target"))
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: no text `question`; a row of Countdown has question, numbers and target.")
    if not isinstance(numbers, list) or not numbers or not all(map(_is_whole, numbers)) or not _is_whole(target):
        raise UserError(f"{where}: numbers is {numbers!r:.40} and target {target!r:.20}; give whole numbers.")
    return {"question": question.strip(), "numbers": numbers, "target": target}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _expression(text: str, row: Row) -> str | None:
    return problems.final_expression(text) or None


def _same_value(one: str, other: str) -> bool:
    """Whether two expressions have the same value from the same numbers: 3*(7*1) and (7*1)*3 are one answer."""
    first, second = problems.evaluate(one), problems.evaluate(other)
    if first is None or second is None:
        return one == other
    return first[0] == second[0] and sorted(first[1]) == sorted(second[1])


def _solves(expression: str, row: Row) -> bool:
    return problems.solves(expression, row["numbers"], row["target"])
