"""Gives the rows of a pool the columns `pass_rate` and `pass_tries` of a student."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from s1jax.config.sampling import SamplingParams
from s1jax.curation import pass_rate
from s1jax.curation.graded import graded
from s1jax.curation.measurement import Columns, Named, Note
from s1jax.curation.pass_rate import Plan, Problem, Rate, Tries
from s1jax.engine.description import Description
from s1jax.engine.request import Request
from s1jax.engine.rows import Engine
from s1jax.errors import UserError
from s1jax.io.journals import ALONE, Journals, Share

TRIES = "tries.jsonl"
Progress = Callable[[int, int, float], None]  # tries that are there, tries that may be needed, new tokens a second


class Student(Engine, Protocol):
    """What is tried: `s1jax.Engine`."""

    def describe(self) -> Description:
        """Returns what it samples with."""

    def check(self, requests: Sequence[Request], params: SamplingParams, /) -> int:
        """Returns the most tokens that a request can need.

        Raises:
          UserError: one of them outgrows the context.
        """


@dataclasses.dataclass(frozen=True)
class PassRates:
    """Measures `pass_rate` and `pass_tries`: how often a student answers a question right.

    All tries are kept in `tries.jsonl`. The same call goes on after an interruption; with rows added, removed or in
    another order it samples what is new.

    Attributes:
      student: is tried.
      tries: of each question, at most.
      stop_above: see `pass_rate.Plan`.
      task: name of the task whose grading the rows get; empty: as mathematics.
      params: of all tries; by default temperature 1 and the limits of the task. Their `seed` is that of the run.
      system: system prompt of questions that have none.
      share: of this process, if several share the tries.
      on_progress: called as tries are made.
    """

    student: Student
    tries: int = 8
    stop_above: float | None = None
    task: str = ""
    params: SamplingParams | None = None
    system: str = ""
    share: Share = ALONE
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise UserError(f"tries is {self.tries}; it must be at least 1.")
        if self.stop_above is not None and not 0 <= self.stop_above < 1:
            raise UserError(f"stop_above is {self.stop_above:g}; give a rate of 0 or more, below 1.")
        if self.params is not None and self.tries > 1 and not self.params.temperature:
            raise UserError(f"temperature 0 gives {self.tries} equal tries; raise it, or ask for 1 try.")

    def __call__(self, rows: Sequence[Named], out: pathlib.Path, note: Note) -> Columns | None:
        """See `s1jax.curation.measurement.Measurement`."""
        found = graded(rows, self.task)
        for sentence in found.notes():
            note(sentence)
        task = found.task
        params = self.params or SamplingParams(
            max_thinking_tokens=task.max_thinking_tokens, max_answer_tokens=task.max_answer_tokens, temperature=1.0
        )
        problems = [problem for problem in found.problems if problem is not None]
        self.student.check([pass_rate.request(problem, 0, params) for problem in problems], params)
        about = self.student.describe()
        dtypes = (about.dtype, about.cache_dtype, about.weight_dtype)
        plan = Plan(self.tries, self.stop_above)
        with self._open(out / TRIES, pass_rate.settings(about.weights, params, self.system, dtypes)) as journals:
            self._sample(problems, Tries(task, journals.rows), plan, params, journals)
            if not self.share.is_first:
                return None
            journals.gather(lambda rows: _lacks(Tries(task, rows), problems, plan))
            tries = Tries(task, journals.rows)
        rates = [None if problem is None else tries.rate(problem, plan) for problem in found.problems]
        for sentence in notes(rates, self.tries):
            note(sentence)
        return columns(rates)

    def _open(self, path: pathlib.Path, run: str) -> Journals:
        """Opens the journals of the tries; all processes call this at the same place."""
        if self.share == ALONE:
            return Journals(path, run, self.share)
        from s1jax.parallel import shares  # needs jax, which has connected the processes

        return shares.open_journals(path, run, self.share)

    def _sample(
        self, problems: Sequence[Problem], tries: Tries, plan: Plan, params: SamplingParams, journals: Journals
    ) -> None:
        """Samples the tries of this process that the journals lack."""
        keys = sorted({problem.key for problem in problems})
        own = {key for place, key in enumerate(keys) if place in self.share}
        mine = [problem for problem in problems if problem.key in own]
        before, begun = tries.count(own), time.monotonic()

        def report(done: int, tokens: int) -> None:
            if self.on_progress is not None:
                seconds = max(time.monotonic() - begun, 1e-9)
                self.on_progress(before + done, len(own) * plan.tries, tokens / seconds)

        pass_rate.sample(self.student, mine, tries, plan, params, journals.append, system=self.system, progress=report)


def _lacks(tries: Tries, problems: Sequence[Problem], plan: Plan) -> bool:
    return any(tries.missing(problem, plan) for problem in problems)


def columns(rates: Sequence[Rate | None]) -> Columns:
    """Returns the columns of rates."""
    nothing = {"pass_rate": None, "pass_tries": None}
    return Columns([nothing if rate is None else rate.columns for rate in rates], summary(rates))


def summary(rates: Sequence[Rate | None]) -> str:
    """Returns one line about rates: how many rows were solved in all tries, in some, in none."""
    known = [rate for rate in rates if rate is not None]
    always = sum(rate.right == rate.tries for rate in known)
    never = sum(rate.right == 0 for rate in known)
    mean = 100 * sum(rate.right / rate.tries for rate in known) / max(len(known), 1)
    return (
        f"{len(known):,} rows: the student is right in {mean:.1f} % of the tries on average; in all tries for"
        f" {always:,} rows, in none for {never:,}, in some for {len(known) - always - never:,}"
    )


def notes(rates: Sequence[Rate | None], tries: int = 0) -> list[str]:
    """Returns what is unusual about rates: early stops, undecided verdicts, a student that solves everything.

    Args:
      rates: of all rows.
      tries: that each row would have had without early stops; 0: not known.
    """
    known = [rate for rate in rates if rate is not None]
    found = []
    if early := sum(rate.tries < tries for rate in known):
        found.append(
            f"{early:,} rows were settled in fewer than {tries} tries; their rates are above the limit, not exact."
        )
    if undecided := sum(rate.undecided for rate in known):
        total = sum(rate.tries for rate in known)
        found.append(f"{undecided:,} of {total:,} verdicts are undecided, as their comparison did not end; not right.")
    if known and all(rate.right == rate.tries for rate in known):
        found.append(
            f"the student solves all {len(known):,} rows in every try, so that 0 rows remain for a rule that drops what"
            " it solves; take harder questions or a weaker student."
        )
    return found
