"""Generates a pool of Countdown questions with planted defects, where the defect of every question is known (no jax).

A pool is what a collector of questions comes home with: good questions, and some that no training set should have. As
the truth about each question is known, a curation of the pool can be measured.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.tasks.countdown import problems
from s1jax.tasks.countdown.problems import Problem

# What a row of the pool is, with its share of the pool. `good` is the rest.
SHARES: Mapping[str, float] = {
    "easy": 0.15,  # several first moves lead to the target
    "impossible": 0.10,  # the target cannot be made: a misprint in the question
    "reference": 0.06,  # the question is sound, its reference names another target
    "duplicate": 0.05,  # a question of the pool once more, word for word
    "reordered duplicate": 0.05,  # the same with its numbers in another order
    "leak": 0.01,  # a question of the evaluation, word for word
    "punctuated leak": 0.01,  # the same with another punctuation
    "reordered leak": 0.01,  # the same with its numbers in another order
}
KINDS = ("good", *SHARES)
LEAKS = tuple(kind for kind in SHARES if kind.endswith("leak"))
DUPLICATES = tuple(kind for kind in SHARES if kind.endswith("duplicate"))
_EASY = 3  # first moves that lead to the target, at least


@dataclasses.dataclass(frozen=True)
class Planted:
    """One row of a pool, with the truth about it.

    Attributes:
      problem: what the question asks.
      question: its text.
      target: the reference: what a grader takes for the right value.
      kind: one of `KINDS`.
      of: the question that a duplicate or a leak repeats; empty for the others.
    """

    problem: Problem
    question: str
    target: int
    kind: str
    of: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The row as a pipeline sees it: question, numbers, target; nothing of the truth."""
        return {"question": self.question, "numbers": list(self.problem.numbers), "target": self.target}


def make(num_rows: int, evaluation: Sequence[Problem], seed: int = 0) -> list[Planted]:
    """Makes a pool of problems of the train split and of leaks, in a shuffled order; another seed gives another pool.

    Args:
      num_rows: of the pool.
      evaluation: the problems that a model will be measured on; some of them leak into the pool.
      seed: of everything that is drawn.

    Raises:
      UserError: there are not enough problems for so many rows or leaks.
    """
    rng = random.Random(f"countdown pool {seed}")
    counts = {kind: round(share * num_rows) for kind, share in SHARES.items()}
    found = problems.problems("train", seed)
    easy = [problem for problem in found if len(problem.solving) >= _EASY]
    rest = [problem for problem in found if len(problem.solving) < _EASY]
    own = num_rows - sum(counts.values())
    leaked = sum(counts[kind] for kind in LEAKS)
    needed = own + counts["reference"]
    if needed > len(rest) or counts["easy"] > len(easy) or leaked > len(evaluation):
        raise UserError(
            f"Countdown has too few problems for a pool of {num_rows} rows and {len(evaluation)} of the evaluation; ask"
            " for fewer rows."
        )
    pool = [Planted(problem, problem.question, problem.target, "good") for problem in rest[:own]]
    pool += [Planted(problem, problem.question, problem.target, "easy") for problem in easy[: counts["easy"]]]
    for problem in rest[own:needed]:
        pool.append(Planted(problem, problem.question, _other(problem, rng), "reference"))
    for triple, target in rng.sample(_impossible(), counts["impossible"]):
        problem = Problem(problems.shuffled(triple, rng), target)
        pool.append(Planted(problem, problem.question, problem.target, "impossible"))
    copied = rng.sample(rest[:own], sum(counts[kind] for kind in DUPLICATES))
    pool += _copies(copied, {kind: counts[kind] for kind in DUPLICATES}, rng)
    asked = rng.sample(list(evaluation), leaked)
    pool += _copies(asked, {kind: counts[kind] for kind in LEAKS}, rng)
    rng.shuffle(pool)
    return pool


def _copies(originals: list[Problem], counts: Mapping[str, int], rng: random.Random) -> list[Planted]:
    """Questions again, so many of each kind: word for word, punctuated or reordered."""
    made: list[Planted] = []
    for kind in (kind for kind, count in counts.items() for _ in range(count)):
        original = originals[len(made)]
        problem, question = original, original.question
        if kind.startswith("reordered"):
            while problem.numbers == original.numbers:
                problem = Problem(problems.shuffled(original.numbers, rng), original.target)
            question = problem.question
        elif kind.startswith("punctuated"):
            question = f"{question}:"
        made.append(Planted(problem, question, original.target, kind, original.question))
    return made


def _impossible() -> list[tuple[tuple[int, int, int], int]]:
    """Triples of the train split with targets that they cannot make."""
    every = set(range(problems.LARGEST_VALUE + 1))
    triples = problems.triples("train")
    return [(triple, value) for triple in triples for value in sorted(every.difference(problems.targets(triple)))]


def _other(problem: Problem, rng: random.Random) -> int:
    """Another value that a reference may name: one that the numbers can make."""
    return rng.choice([value for value in problems.targets(problem.numbers) if value != problem.target])
