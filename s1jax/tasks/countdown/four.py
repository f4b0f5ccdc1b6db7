"""Countdown with four numbers: problems for evaluation only (no jax).

"Make T from a b c d" in the words of `s1jax.tasks.countdown.problems`: four different numbers of 1..15, each used once,
with + - *; results of all moves and T are in 0..99. The moves may be combined in any way, (a+b)*(c-d) included. No
model is trained on four numbers, so every problem is new to it; `dev` and `test` are disjoint as for three.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

from s1jax.errors import UserError
from s1jax.tasks.countdown import problems


@functools.cache
def values(numbers: tuple[int, ...]) -> frozenset[int]:
    """All values that ascending numbers make together: each is used once, no result of a move leaves 0..99."""
    if len(numbers) == 1:
        return frozenset(numbers)
    found: set[int] = set()
    for size in range(1, len(numbers) // 2 + 1):
        for left in itertools.combinations(numbers, size):
            right = tuple(number for number in numbers if number not in left)
            for x, y in itertools.product(values(left), values(right)):
                found.update(problems.apply(operation, x, y)[2] for operation in problems.OPERATIONS)
    return frozenset(value for value in found if value <= problems.LARGEST_VALUE)


def prompt_rows(split: str, num_rows: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Problems as prompt rows for sampling: question, numbers, target. One problem for each set of four numbers.

    Args:
      split: `train`, `dev` or `test`; 80, 10 and 10 % of the 1,365 sets by the hash that splits three numbers.
      num_rows: number of rows from the front; 0 takes all.
      seed: seed of the order of problems and numbers, and of the targets, which are drawn uniformly from the values
        that the four numbers can make.

    Raises:
      UserError: there is no such split, or it has fewer problems than were asked for.
    """
    if split not in problems.SPLITS:
        raise UserError(f"Countdown has no split {split!r}; choose one of {', '.join(problems.SPLITS)}.")
    every = itertools.combinations(range(1, problems.LARGEST_NUMBER + 1), 4)
    sets = [numbers for numbers in every if problems.split_of(numbers) == split]
    if num_rows > len(sets):
        raise UserError(f"Countdown's split {split} has {len(sets)} sets of four; {num_rows} were asked for.")
    rng = random.Random(f"countdown four numbers {seed}")
    rng.shuffle(sets)
    rows: list[dict[str, Any]] = []
    for numbers in sets[: num_rows or None]:
        order, target = rng.sample(numbers, 4), rng.choice(sorted(values(numbers)))
        question = f"Make {target} from {' '.join(map(str, order))}"
        rows.append({"question": question, "numbers": order, "target": target})
    return rows
