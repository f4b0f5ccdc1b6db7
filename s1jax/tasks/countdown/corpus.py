"""Generates the text that the Countdown base model is trained on from scratch (no jax).

The text consists of searches over the problems of the train split, without any chat symbol, and of arithmetic facts. A
batch is a pure function of (seed, step), so a run resumes exactly and nothing is stored. The searches teach what "Wait"
triggers later: to continue with the next branch, to check a hit again, and to withdraw a wrong one.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np

from s1jax.tasks.countdown import problems
from s1jax.tasks.countdown.problems import Branch, Leaf, Problem

# Shares and lengths of the parts of the corpus; chosen on the dev split.
_UNSOLVABLE = 0.10  # searches for a target that the numbers can't make: every branch fails, and the round starts again
_SHORT = 0.25  # searches that hit within their first three branches
_SLIP = 0.05  # branches that claim a false hit, which the check after it withdraws
_CHECK = 0.3  # probability of a check after a hit, and of every further one
_LONG = 0.1  # hits with a long chain of checks instead, which teaches nothing about when to stop
_ANSWER = 0.9  # hits that are followed by the answer
_MOST_BRANCHES = 12
_MOST_CHECKS = 16
_MISSES = 4  # failed attempts to fit a search before facts fill the rest of the rows

# Weights of targets in the loss. Most tokens are copied or follow from the grammar and are soon certain. Comparing a
# value with the target takes long to learn. Where a search starts cannot be known: mostly noise in the gradient.
_VERDICT = 4.0
_MOVE = 2.0
_CHANCE = 0.1
_VERDICTS = frozenset(problems.encode("yes no"))


@dataclasses.dataclass
class _Document:
    """Tokens of one search or list of facts, and the weight of each as a target."""

    ids: list[int] = dataclasses.field(default_factory=list)
    weights: list[float] = dataclasses.field(default_factory=list)

    def add(self, text: str, weight: float = 1.0) -> None:
        for symbol in problems.encode(text):
            self.ids.append(symbol)
            self.weights.append(weight * (_VERDICT if symbol in _VERDICTS else 1.0))


def _draw_problem(rng: random.Random) -> tuple[Problem, int]:
    """A problem of the train split and the branch to start from."""
    triples = problems.triples("train")
    triple = rng.choice(triples)
    numbers = problems.shuffled(triple, rng)
    possible = problems.targets(numbers)
    kind = rng.random()
    if kind < _UNSOLVABLE:
        impossible = sorted(set(range(problems.LARGEST_VALUE + 1)).difference(possible))
        problem = Problem(numbers, rng.choice(impossible))
        return problem, rng.randrange(len(problem.branches))
    problem = Problem(numbers, rng.choice(possible))
    if kind < _UNSOLVABLE + _SHORT:
        start = rng.choice(problem.solving) - rng.randrange(3)
        return problem, start % len(problem.branches)
    return problem, rng.randrange(len(problem.branches))


def _search(rng: random.Random) -> _Document:
    """A question and its search, with checks after a hit and usually the answer."""
    problem, start = _draw_problem(rng)
    document = _Document()
    document.add(problem.question, 0.0)
    most = rng.randint(1, _MOST_BRANCHES) if rng.random() < 0.3 else _MOST_BRANCHES
    for i in range(most):
        branch = problem.branches[(start + i) % len(problem.branches)]
        document.add("\nWait try" if i else "\ntry")
        document.add(branch.text, _MOVE if i else _CHANCE)
        line, hit = problems.try_text(branch, problem.target)
        line = line.removeprefix(f"try {branch.text}")
        if hit is not None:
            document.add(line)
            _add_end(document, branch, hit, problem.target, rng)
            break
        if rng.random() < _SLIP:
            leaf = rng.choice(branch.leaves)
            document.add(f"{line.partition(f' {leaf.text}=')[0]} {leaf.text}=")
            document.add(str(problem.target), 0.0)
            document.add(f" yes so {leaf.expression}\nWait {problems.check_text(branch, leaf, problem.target)}")
        else:
            document.add(line)
    return document


def _add_end(document: _Document, branch: Branch, hit: Leaf, target: int, rng: random.Random) -> None:
    """Adds the checks after a hit and usually the answer."""
    check = problems.check_text(branch, hit, target)
    if rng.random() < _LONG:
        for _ in range(rng.randint(3, _MOST_CHECKS)):
            document.add("\n")
            document.add("Wait", 0.0)
            document.add(check)
        return
    while rng.random() < _CHECK:
        document.add(f"\nWait {check}")
    if rng.random() < _ANSWER:
        document.add(f"\n{problems.FINAL_ANSWER} {hit.expression}{problems.END_OF_TEXT}")


def _fact(rng: random.Random) -> tuple[str, str]:
    """One sum, difference or product of 0..99, as the searches use them, and its value."""
    while True:
        x, y = rng.randint(0, problems.LARGEST_VALUE), rng.randint(1, problems.LARGEST_NUMBER)
        operation = rng.choice(problems.OPERATIONS)
        if operation == "*":
            x %= problems.LARGEST_VALUE // y + 1
        p, q, value = problems.apply(operation, x, y)
        if value <= problems.LARGEST_VALUE:
            return f"{p}{operation}{q}", str(value)


def corpus_batch(step: int, *, rows: int, block_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The batch of one step: searches packed first-fit, one segment each, and facts in the remaining space.

    Args:
      step: 0 or more; every step has its own text.
      rows: B.
      block_size: T; longer searches are drawn again.
      seed: seed of all text.

    Returns:
      tokens, targets, segment_ids (0 is padding), positions int32 [B, T]; weights float32 [B, T], 0 for the question,
      for random parts of a fact and for the false value of a slip; the constants above give the other weights.
    """
    rng = random.Random(f"countdown corpus {seed} {step}")
    batch = {name: np.zeros((rows, block_size), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["weights"] = np.zeros((rows, block_size), np.float32)
    used, segments = [0] * rows, [0] * rows

    def place(document: _Document, row: int) -> None:
        n = len(document.ids) - 1
        here = slice(used[row], used[row] + n)
        batch["tokens"][row, here] = document.ids[:-1]
        batch["targets"][row, here] = document.ids[1:]
        batch["weights"][row, here] = document.weights[1:]
        batch["positions"][row, here] = np.arange(n)
        segments[row] += 1
        batch["segment_ids"][row, here] = segments[row]
        used[row] += n

    misses = 0
    while misses < _MISSES:
        document = _search(rng)
        row = next((r for r in range(rows) if used[r] + len(document.ids) - 1 <= block_size), None)
        if row is None:
            misses += 1
        else:
            place(document, row)
    for row in range(rows):
        document = _Document()
        while len(document.ids) <= block_size - used[row]:
            move, value = _fact(rng)
            document.add(f"{move}=", 0.0)
            document.add(value)
            document.add("\n", 0.0)
        del document.ids[block_size - used[row] + 1 :], document.weights[block_size - used[row] + 1 :]
        if len(document.ids) > 1:
            place(document, row)
    return batch
