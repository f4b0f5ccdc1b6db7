"""Measures how often a student answers a question right: right answers of a number of tries.

A try is sampled with a seed that depends on the question, its number and nothing else. So rates are the same in any
order of rows, in any number of processes and after any interruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from s1jax.config.sampling import SamplingParams
from s1jax.data import identity
from s1jax.engine.request import Output, Request
from s1jax.engine.rows import Engine
from s1jax.tasks.task import Task

Try = dict[str, Any]  # JSON values of one try, as the journal keeps them


@dataclasses.dataclass(frozen=True)
class Rate:
    """How often a question was answered right.

    Attributes:
      right: answers.
      tries: all of them, undecided ones included.
      undecided: tries whose comparison with the solution did not end; they do not count as right.
    """

    right: int
    tries: int
    undecided: int = 0

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a row: `pass_rate` and `pass_tries`."""
        return {"pass_rate": self.right / self.tries, "pass_tries": self.tries}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How often each question is tried.

    Attributes:
      tries: at most; at least 1.
      stop_above: a question is not tried any more once its rate over all `tries` is certain to be above this; None:
        every question gets all tries.
    """

    tries: int
    stop_above: float | None = None

    def wanted(self, right: Sequence[bool]) -> int:
        """Returns how many tries a question needs in all, as far as its verdicts so far show.

        Tries are asked for in rounds. A round has as many as would settle the question if all of them were right. The
        number is a function of the verdicts in the order of tries, so that interruptions do not change it.
        """
        if self.stop_above is None:
            return self.tries
        enough = next((n for n in range(1, self.tries + 1) if n / self.tries > self.stop_above), self.tries)
        total = enough
        while total <= len(right) and total < self.tries:
            found = sum(right[:total])
            if found >= enough:
                return total
            total = min(total + enough - found, self.tries)
        return total


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with what it is graded against.

    Attributes:
      row: of a task (`s1jax.tasks.benchmarks.problem`).
      name: what messages call it.
      key: identifies what the student is asked.
    """

    row: Mapping[str, Any]
    name: str

    @property
    def key(self) -> str:
        """32 hex digits: identity of the question, with the system prompt where the row has one."""
        system = self.row.get("system", "")
        return identity.question_id(f"{self.row['question']}\n{system}" if system else self.row["question"])


def seed_of(seed: int, key: str, attempt: int) -> int:
    """Returns the seed of one try, a whole number in [0, 2**32): a hash of the run's seed, the question, the try."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {attempt}".encode()).digest()[:4], "big")


class Tries:
    """What a student has answered so far, with verdicts."""

    def __init__(self, task: Task, rows: Iterable[Try]):
        """Takes the task that grades and what a journal has."""
        self._task = task
        self._found: dict[str, dict[int, Try]] = {}
        for row in rows:
            self._add(row)

    def _add(self, row: Try) -> None:
        self._found.setdefault(row["id"], {})[row["try"]] = row

    def count(self, keys: Collection[str]) -> int:
        """Returns the number of tries at the questions with these keys."""
        return sum(len(self._found.get(key, {})) for key in keys)

    def record(self, problem: Problem, attempt: int, output: Output) -> Try:
        """Adds a try and returns it as the journal keeps it."""
        row: Try = {
            "id": problem.key,
            "try": attempt,
            "answer": output.answer,
            "thinking_tokens": output.thinking_tokens,
            "answer_tokens": output.answer_tokens,
            "thinking_end": output.thinking_end,
            "answer_end": output.answer_end,
            "correct": self._task.grade(output.answer, problem.row),
            "mark": self._task.mark(output.answer, problem.row),
        }
        self._add(row)
        return row

    def verdicts(self, problem: Problem) -> list[bool | None]:
        """Returns whether tries 0, 1, ... are right, up to the first that is missing; None: undecided.

        A verdict of the journal is kept where grader, answer and solution are the same.
        """
        found = self._found.get(problem.key, {})
        verdicts: list[bool | None] = []
        while (row := found.get(len(verdicts))) is not None:
            same = row["mark"] == self._task.mark(row["answer"], problem.row)
            verdicts.append(row["correct"] if same else self._task.grade(row["answer"], problem.row))
        return verdicts

    def missing(self, problem: Problem, plan: Plan) -> list[int]:
        """Returns the numbers of the tries that a problem needs next; none where its rate is known."""
        found = self._found.get(problem.key, {})
        right = [verdict is True for verdict in self.verdicts(problem)]
        return [attempt for attempt in range(plan.wanted(right)) if attempt not in found]

    def rate(self, problem: Problem, plan: Plan) -> Rate:
        """Returns the rate of a problem whose tries are all there."""
        verdicts = self.verdicts(problem)
        verdicts = verdicts[: plan.wanted([verdict is True for verdict in verdicts])]
        return Rate(verdicts.count(True), len(verdicts), verdicts.count(None))


def sample(
    engine: Engine,
    problems: Sequence[Problem],
    tries: Tries,
    plan: Plan,
    params: SamplingParams,
    keep: Callable[[Try], None],
    *,
    system: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Samples the tries that are missing, until the rate of every problem is known.

    Args:
      engine: the student.
      problems: in any order; what several of them ask alike is tried once.
      tries: gets the new ones.
      plan: how many.
      params: of every try; their `seed` is that of the run.
      keep: is called with each new try, as a journal keeps it.
      system: system prompt of problems that have none.
      progress: called with the number of new tries and of new tokens.
    """
    done = tokens = 0
    while wanted := _wanted(problems, tries, plan):
        requests = [request(problem, attempt, params) for problem, attempt in wanted]
        for place, output in engine.stream(requests, params, system=system):
            keep(tries.record(*wanted[place], output))
            done, tokens = done + 1, tokens + len(output.token_ids)
            if progress is not None:
                progress(done, tokens)


def _wanted(problems: Sequence[Problem], tries: Tries, plan: Plan) -> list[tuple[Problem, int]]:
    """Returns the tries of the next round, each once; those of one question stand side by side."""
    found: dict[tuple[str, int], Problem] = {}
    for problem in problems:
        for attempt in tries.missing(problem, plan):
            found.setdefault((problem.key, attempt), problem)
    return [(problem, attempt) for (_, attempt), problem in found.items()]


def request(problem: Problem, attempt: int, params: SamplingParams) -> Request:
    """Returns the request of one try; `params` has the seed of the run."""
    own = dataclasses.replace(params, seed=seed_of(params.seed, problem.key, attempt))
    return Request(problem.row["question"], params=own, system=problem.row.get("system"), name=problem.name)


def settings(weights: str, params: SamplingParams, system: str, dtypes: Sequence[str]) -> str:
    """Returns 16 hex digits that identify all that a try depends on beside its question: the run of its journal."""
    asked = json.dumps([weights, dataclasses.asdict(params), system, *dtypes], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]
