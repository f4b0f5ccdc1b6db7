"""Countdown with three numbers: the embedded task. Problems, an exact checker, SFT rows and their symbols (no jax).

"Make T from a b c": three different numbers of 1..15, each used once, with + - *. A *branch* is a first move (a pair
and an operation, the larger number first in a subtraction), a *leaf* combines its result with the third number.
Intermediate results and T are in 0..99. A trace tries branches in cyclic order and checks what it found; see
`search_text`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal

from s1jax.errors import UserError

LARGEST_NUMBER = 15
LARGEST_VALUE = 99
OPERATIONS = "+-*"
_PAIRS = ((0, 1), (0, 2), (1, 2))

PAD, END_OF_TEXT, IM_START, IM_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_SYMBOLS = (PAD, END_OF_TEXT, IM_START, IM_END)
_WORDS = ("user", "assistant", "think", "answer", "Make", "from", "try", "check", "Wait", "yes", "no", "so")
# The id of a symbol is its index here. `s1jax/assets/countdown_tokenizer` has the same table.
SYMBOLS = (*SPECIAL_SYMBOLS, "\n", *_WORDS, "Final", "Answer", *":+-*=()", *map(str, range(LARGEST_VALUE + 1)))
_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}
# A space separates symbols and is not a symbol itself.
SYMBOL_PATTERN = r"<\|[a-z_]+\|>|\n|[0-9]+|[A-Za-z]+|[^ ]"

FINAL_ANSWER = "Final Answer:"
SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem, solvable or not.

    Attributes:
      numbers: the three numbers in the order in which the question names them.
      target: T.
    """

    numbers: tuple[int, int, int]
    target: int

    @property
    def question(self) -> str:
        return f"Make {self.target} from {' '.join(map(str, self.numbers))}"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return branches(self.numbers)

    @property
    def solving(self) -> tuple[int, ...]:
        """Places in `branches` that have a leaf with the target as its value."""
        return tuple(i for i, b in enumerate(self.branches) if any(leaf.value == self.target for leaf in b.leaves))

    @property
    def hard(self) -> bool:
        """True if exactly one branch leads to the target."""
        return len(self.solving) == 1


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A second move: `text` ("6+3"), its `value` (9) and the whole `expression` ("(7-1)+3")."""

    text: str
    value: int
    expression: str


@dataclasses.dataclass(frozen=True)
class Branch:
    """A first move, `text` ("7-1"), its `value` (6) and its leaves in trying order."""

    text: str
    value: int
    leaves: tuple[Leaf, ...]


def apply(operation: str, x: int, y: int) -> tuple[int, int, int]:
    """Returns (first operand, second operand, value); a subtraction takes the smaller from the larger."""
    if operation == "+":
        return x, y, x + y
    if operation == "*":
        return x, y, x * y
    return max(x, y), min(x, y), abs(x - y)


@functools.cache
def branches(numbers: tuple[int, int, int]) -> tuple[Branch, ...]:
    """All first moves with a value of at most 99 (at most 9), in trying order: pairs by place, then + - *."""
    found = []
    for i, j in _PAIRS:
        third = numbers[3 - i - j]
        for operation in OPERATIONS:
            x, y, value = apply(operation, numbers[i], numbers[j])
            if value > LARGEST_VALUE:
                continue
            move = f"{x}{operation}{y}"
            leaves = []
            for second in OPERATIONS:
                p, q, result = apply(second, value, third)
                if result > LARGEST_VALUE:
                    continue
                swapped = p != value  # only in a subtraction from the third number the first move comes second
                expression = f"{third}{second}({move})" if swapped else f"({move}){second}{third}"
                leaves.append(Leaf(f"{p}{second}{q}", result, expression))
            found.append(Branch(move, value, tuple(leaves)))
    return tuple(found)


def targets(numbers: tuple[int, int, int]) -> tuple[int, ...]:
    """All values that the three numbers can make, ascending."""
    return tuple(sorted({leaf.value for branch in branches(numbers) for leaf in branch.leaves}))


def split_of(numbers: tuple[int, ...]) -> Literal["train", "dev", "test"]:
    """Which split three or four numbers belong to, in any order: 80 % train, 10 % dev, 10 % test by a fixed hash.

    Neither the corpus nor the training rows contain a dev or test triple, under any target. `dev` is for choosing
    settings, `test` for reporting.
    """
    code = zlib.crc32(" ".join(map(str, sorted(numbers))).encode()) % 10
    return "dev" if code == 0 else "test" if code == 5 else "train"


@functools.cache
def triples(split: str) -> tuple[tuple[int, int, int], ...]:
    """The ascending number triples of a split, or of all three for `all`; 455 in all."""
    if split != "all" and split not in SPLITS:
        raise UserError(f"Countdown has no split {split!r}; choose one of {', '.join(SPLITS)}.")
    every = itertools.combinations(range(1, LARGEST_NUMBER + 1), 3)
    return tuple(triple for triple in every if split in ("all", split_of(triple)))


def problems(split: str, seed: int = 0) -> list[Problem]:
    """All solvable problems of a split, shuffled, each with its numbers in a shuffled order.

    Args:
      split: `train`, `dev` or `test`.
      seed: seed of both orders; every seed gives the same problems.
    """
    found = [(triple, target) for triple in triples(split) for target in targets(triple)]
    rng = random.Random(f"countdown problems {seed}")
    rng.shuffle(found)
    return [Problem(shuffled(triple, rng), target) for triple, target in found]


def shuffled(triple: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    """Three numbers in another order."""
    first, second, third = rng.sample(triple, 3)
    return first, second, third


def prompt_rows(split: str, num_rows: int = 0, seed: int = 0, hard: bool = False) -> list[dict[str, Any]]:
    """Problems as prompt rows for sampling: question, numbers, target, hard.

    Args:
      split: `train`, `dev` or `test`.
      num_rows: number of rows from the front of `problems(split, seed)`; 0 takes all.
      seed: seed of the order.
      hard: only problems with exactly one solving branch.
    """
    found = [p for p in problems(split, seed) if p.hard or not hard]
    if num_rows > len(found):
        raise UserError(f"Countdown's split {split} has {len(found)} such problems; {num_rows} were asked for.")
    rows: list[dict[str, Any]] = []
    for problem in found[: num_rows or None]:
        row = {"question": problem.question, "numbers": list(problem.numbers)}
        rows.append({**row, "target": problem.target, "hard": problem.hard})
    return rows


# The checker.


def evaluate(expression: str) -> tuple[int, list[int]] | None:
    """Value of an expression of integers, + - * and parentheses, and the integers in it in reading order.

    * binds tighter than + and -; equal precedence groups to the left. No unary sign. None if it does not parse.
    """
    symbols = re.findall(r"[0-9]+|[^\s]", expression)
    numbers: list[int] = []
    place = 0

    def peek() -> str:
        return symbols[place] if place < len(symbols) else ""

    def take() -> str:
        nonlocal place
        place += 1
        return symbols[place - 1]

    def factor(depth: int) -> int:
        if peek() == "(" and depth < 50:
            take()
            value = total(depth + 1)
            if peek() != ")":
                raise ValueError
            take()
            return value
        if not peek().isascii() or not peek().isdigit() or len(peek()) > 9:
            raise ValueError
        numbers.append(int(take()))
        return numbers[-1]

    def product(depth: int) -> int:
        value = factor(depth)
        while peek() == "*":
            take()
            value *= factor(depth)
        return value

    def total(depth: int) -> int:
        value = product(depth)
        while peek() and peek() in "+-":
            value = value + product(depth) if take() == "+" else value - product(depth)
        return value

    try:
        value = total(0)
    except ValueError:
        return None
    return (value, numbers) if place == len(symbols) else None


def solves(expression: str, numbers: tuple[int, ...] | list[int], target: int) -> bool:
    """True if an expression uses exactly the given numbers, each once, and its value is the target."""
    found = evaluate(expression)
    return found is not None and found[0] == target and sorted(found[1]) == sorted(numbers)


def final_expression(answer: str) -> str:
    """Returns the text after the last "Answer:" on its line, up to a special symbol; empty if there is none.

    In the base model's own format "Final" ends the thinking, so an answer begins with "Answer:".
    """
    _, marker, rest = answer.rpartition("Answer:")
    return re.split(r"<\||\n", rest.strip(), maxsplit=1)[0].strip() if marker else ""


def grade(answer: str, row: Mapping[str, Any]) -> bool:
    """True if the final expression of an answer solves a prompt row (its `numbers` and `target`)."""
    return solves(final_expression(answer), row["numbers"], row["target"])


# Symbols.


def encode(text: str) -> list[int]:
    """Token ids of a text; the same as those of the packaged tokenizer.

    Raises:
      UserError: if the text contains something that is not a symbol.
    """
    try:
        return [_IDS[symbol] for symbol in re.findall(SYMBOL_PATTERN, text)]
    except KeyError as error:
        raise UserError(
            f"Countdown's vocabulary has no symbol {error.args[0]!r}; write for example 'Make 21 from 3 7 1'."
        ) from None


# Traces.


def try_text(branch: Branch, target: int) -> tuple[str, Leaf | None]:
    """The line that tries one branch, leaf by leaf up to a hit, and the leaf that hit."""
    words = [f"try {branch.text}={branch.value}:"]
    for leaf in branch.leaves:
        if leaf.value == target:
            words.append(f"{leaf.text}={leaf.value} yes so {leaf.expression}")
            return " ".join(words), leaf
        words.append(f"{leaf.text}={leaf.value} no")
    return " ".join(words), None


def check_text(branch: Branch, leaf: Leaf, target: int) -> str:
    """The line that recomputes a claimed solution and says whether it is right."""
    verdict = f"yes so {leaf.expression}" if leaf.value == target else "no"
    return f"check {branch.text}={branch.value}: {leaf.text}={leaf.value} {verdict}"


def search_text(problem: Problem, start: int, most_branches: int, checks: int) -> tuple[str, str]:
    """A trace and the expression it ends with, both as text.

    Branches are tried in cyclic order from `start` until a leaf hits or `most_branches` were tried; then the search
    gives up, with the closest leaf it has seen (the first of equals) as its wrong answer. A hit is checked `checks`
    times. Lines are joined by a newline and "Wait".
    """
    lines: list[str] = []
    closest: Leaf | None = None
    for i in range(most_branches):
        branch = problem.branches[(start + i) % len(problem.branches)]
        line, hit = try_text(branch, problem.target)
        lines.append(line)
        if hit is not None:
            lines += [check_text(branch, hit, problem.target)] * checks
            closest = hit
            break
        for leaf in branch.leaves:
            if closest is None or abs(leaf.value - problem.target) < abs(closest.value - problem.target):
                closest = leaf
    assert closest is not None  # every branch has a leaf: a subtraction never leaves 0..99
    return "\nWait ".join(lines), closest.expression


@dataclasses.dataclass(frozen=True)
class Example:
    """One SFT example: question, trace and answer as text, and whether the answer solves the problem."""

    question: str
    trace: str
    answer: str
    solved: bool


def sft_examples(num_rows: int = 1000, seed: int = 0) -> list[Example]:
    """The fine-tuning set: different problems of the train split, searched for 1 to 3 branches (uniform).

    A hit is followed by 0 to 3 checks (another with probability 0.25 each). About 44 % of the answers are right. The
    others gave up too early, which "Wait" can correct.

    Raises:
      UserError: if there are fewer problems than `num_rows`.
    """
    found = problems("train", seed)
    if num_rows > len(found):
        raise UserError(f"data.num_rows is {num_rows}, but Countdown has {len(found)} training problems.")
    rng = random.Random(f"countdown traces {seed}")
    examples = []
    for problem in found[:num_rows]:
        start, most = rng.randrange(len(problem.branches)), rng.randint(1, 3)
        checks = 0
        while checks < 3 and rng.random() < 0.25:
            checks += 1
        trace, expression = search_text(problem, start, most, checks)
        solved = solves(expression, problem.numbers, problem.target)
        examples.append(Example(problem.question, trace, f"{FINAL_ANSWER} {expression}", solved))
    return examples
