"""Draws the samples of every run of an evaluation, with a verdict for each."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

from s1jax.config.sampling import SamplingParams
from s1jax.engine import rows as rows_lib
from s1jax.engine.request import Output, Request
from s1jax.evaluation import metrics, outcomes, results
from s1jax.evaluation.outcomes import Outcome
from s1jax.evaluation.remote import RemoteEngine, RemoteOutput
from s1jax.evaluation.strategies import Strategy
from s1jax.io import files
from s1jax.io.journals import ALONE, Journals, Share
from s1jax.remote import confidence
from s1jax.tasks.task import Task

if TYPE_CHECKING:
    from s1jax.checkpoint.store import Metadata, Model
    from s1jax.engine.description import Description

Row = dict[str, Any]  # of JSON values


class Engine(rows_lib.Engine, Protocol):
    """What an evaluation needs of an engine. `s1jax.Engine` has it; a stand-in may load its weights when it samples."""

    @property
    def model(self) -> Model | Metadata:
        """Tokenizer, chat format and provenance of the checkpoint. An evaluation does not use its weights."""

    def describe(self) -> Description:
        """What the engine samples with, for results.json."""

    def check(self, requests: Sequence[Request], params: SamplingParams, /) -> int:
        """Raises a `UserError` for a request that cannot be sampled; returns the most tokens that one can need."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an evaluation is.

    Attributes:
      run: number of the present run, from 0.
      num_runs: number of runs.
      name: of the present run.
      done: answered problems of this process, over all runs.
      total: problems of this process, over all runs.
      tokens_per_second: of the present run; None before its first tokens.
      thinking_share: share of thinking in its tokens, 0 to 1; None likewise.
      accuracy: of the run in percent, once it is complete; None before.
    """

    run: int
    num_runs: int
    name: str
    done: int
    total: int
    tokens_per_second: float | None = None
    thinking_share: float | None = None
    accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an evaluation samples.

    Attributes:
      task: the problems.
      params: sampling parameters that hold for all runs.
      strategies: one a run.
      questions: of each run, one a problem, with the instruction of its strategy.
      remote: answers the run of a strategy with `Strategy.remote`.
    """

    task: Task
    params: SamplingParams
    strategies: Sequence[Strategy]
    questions: Sequence[Sequence[str]]
    remote: RemoteEngine | None = None

    def name(self, strategy: Strategy) -> str:
        """What the run of a strategy is called."""
        return strategy.name(self.params.wait)

    def rows(self) -> tuple[list[Row], list[str]]:
        """Returns a prompt row for each problem of each run of the engine, and what messages call it."""
        rows, names = [], []
        for strategy, questions in zip(self.strategies, self.questions, strict=True):
            if strategy.remote:
                continue
            for i, (row, question) in enumerate(zip(self.task.rows, questions, strict=True)):
                rows.append(strategy.row(row, question, 0, self.params))
                names.append(f'"{self.name(strategy)}", {self.task.place(i)}')
        return rows, names

    def count(self, number: int, share: Share) -> int:
        """How many problems of run `number` a process samples, see `takes`."""
        total = len(self.task.rows)
        return share.count(total) if not self.strategies[number].remote else total * share.is_first

    def takes(self, number: int, problem: int, share: Share) -> bool:
        """Whether a process samples a problem. The first one alone asks a remote, so that its limits hold for all."""
        return share.is_first if self.strategies[number].remote else problem in share

    def start(self, number: int, share: Share) -> Progress:
        """How far an evaluation is when run `number` starts."""
        counts = [self.count(i, share) for i in range(len(self.strategies))]
        return Progress(number, len(counts), self.name(self.strategies[number]), sum(counts[:number]), sum(counts))

    def wanted(self, number: int, samples: Sequence[Row]) -> list[outcomes.Wanted]:
        """Samples that run `number` needs beside those that it has."""
        return outcomes.wanted(self.strategies[number], self.task, self.questions[number], self.params, samples)

    def lacks(self, samples: Iterable[Row]) -> bool:
        """Whether a run needs more samples than `samples`, which are of all runs."""
        kept = _by_run(samples)
        return any(self.wanted(i, kept[self.name(strategy)]) for i, strategy in enumerate(self.strategies))


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run whose problems are all answered.

    Attributes:
      strategy: of the run.
      outcomes: one a problem.
      seconds: wall-clock time of sampling, without loading and compiling.
      forced: samples whose thinking budget forcing cut or extended, as the strategy asks.
    """

    strategy: Strategy
    outcomes: list[Outcome]
    seconds: float
    forced: int


def run_all(
    engine: Engine,
    plan: Plan,
    journals: Journals,
    there: Sequence[Row],
    file: str | os.PathLike[str],
    on_progress: Callable[[Progress], None],
    share: Share = ALONE,
) -> list[Finished]:
    """Makes every run and writes its samples with their verdicts to a file.

    Args:
      engine: samples.
      plan: what to sample.
      journals: get every sample at once.
      there: samples of an earlier process, which are not drawn again.
      file: JSONL file to write.
      on_progress: called at the start and the end of a run, and whenever the engine reports.
      share: problems whose samples are drawn here; `there` and `journals` have those of the others.
    """
    from s1jax import perf  # needs jax, which the engine has loaded

    kept = _by_run([*there, *journals.rows])
    finished = []
    with perf.clock() as clock, io.TextIOWrapper(files.create(file), encoding="utf-8") as stream:
        for number, strategy in enumerate(plan.strategies):
            start = plan.start(number, share)
            on_progress(start)
            rows = kept.pop(start.name, [])
            _sample(engine, plan, number, journals, rows, start, on_progress, clock, share)
            finished.append(_grade(plan.task, strategy, rows, stream))
            accuracy, _ = metrics.accuracy([outcome.right for outcome in finished[-1].outcomes])
            done = start.done + plan.count(number, share)
            on_progress(dataclasses.replace(start, done=done, accuracy=accuracy))
    return finished


def sample_share(
    engine: Engine,
    plan: Plan,
    journals: Journals,
    there: Sequence[Row],
    on_progress: Callable[[Progress], None],
    share: Share,
) -> None:
    """Draws the samples of this process's problems in every run; the arguments are those of `run_all`."""
    from s1jax import perf  # needs jax, which the engine has loaded

    kept = _by_run([*there, *journals.rows])
    with perf.clock() as clock:
        for number in range(len(plan.strategies)):
            start = plan.start(number, share)
            on_progress(start)
            _sample(engine, plan, number, journals, kept[start.name], start, on_progress, clock, share)


def _by_run(samples: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns the samples of each run, every one once: it may be in samples.jsonl and in a journal, or in two."""
    kept: dict[str, list[Row]] = collections.defaultdict(list)
    for record in {results.key(row): row for row in samples}.values():
        kept[record["run"]].append({name: value for name, value in record.items() if name != "fingerprint"})
    return kept


def _sample(
    engine: Engine,
    plan: Plan,
    number: int,
    journals: Journals,
    rows: list[Row],
    start: Progress,
    on_progress: Callable[[Progress], None],
    clock: Callable[[], float],
    share: Share,
) -> None:
    """Draws what run `number` still needs for the problems of `share`; adds it to `rows` and to the journal.

    The `seconds` of a sample are the time since the previous sample. Loading and compilation are excluded: the engine
    loads before, and `clock` stands still while programs are compiled. A strategy that looks at its samples
    before it asks for more is asked again when all that it asked for are there.
    """
    task, strategy = plan.task, plan.strategies[number]
    while wanted := [place for place in plan.wanted(number, rows) if plan.takes(number, place.problem, share)]:
        meter = _Meter(start, plan.count(number, share), [place.problem for place in wanted], on_progress, clock)
        names = [task.place(place.problem) for place in wanted]
        asked = rows_lib.requests([place.row for place in wanted], plan.params, names)
        source = plan.remote if strategy.remote and plan.remote is not None else engine
        stream = source.stream(asked, plan.params, system="", progress=meter.report)
        meter.begun = last = clock()
        for index, output in stream:
            now, place = clock(), wanted[index]
            own = {"run": start.name, "problem": place.problem, "attempt": place.attempt, "seconds": now - last}
            rows.append({**rows_lib.record(place.row, output), **_more(output), **own})
            journals.append(rows[-1])
            last = now
            meter.finish(place.problem)


def _more(output: Output) -> dict[str, Any]:
    """Returns what samples.jsonl keeps beside the fields of every output.

    It is how sure the model was (means as in `confidence.Confidence`), or what a remote endpoint bills.
    """
    if isinstance(output, RemoteOutput):
        return {"usage": {name: value for name, value in output.usage.items() if value is not None}}
    found = confidence.measure(output.logprobs, output.forced, output.answer_tokens)
    return {"confidence": {name: round(getattr(found, name), 6) for name in ("mean", "lowest_window", "answer")}}


class _Meter:
    """Turns what the engine reports while it samples into the progress of the evaluation."""

    def __init__(
        self,
        start: Progress,
        count: int,
        wanted: Sequence[int],
        on_progress: Callable[[Progress], None],
        clock: Callable[[], float],
    ):
        """Takes the number of problems and, for each sample that is wanted, the number of its problem."""
        self.begun = 0.0
        self._start, self._count, self._on_progress, self._clock = start, count, on_progress, clock
        self._left = collections.Counter(wanted)

    def finish(self, problem: int) -> None:
        """Counts a sample of `problem`."""
        self._left[problem] -= 1
        if not self._left[problem]:
            del self._left[problem]

    def report(self, _: int, tokens: int, thinking: int) -> None:
        """Is called by the engine, see `EngineProgress`."""
        done = self._start.done + self._count - len(self._left)
        speed = tokens / max(self._clock() - self.begun, 1e-9)
        share = thinking / tokens if tokens else None
        self._on_progress(dataclasses.replace(self._start, done=done, tokens_per_second=speed, thinking_share=share))


def _grade(task: Task, strategy: Strategy, rows: Sequence[Row], stream: IO[str]) -> Finished:
    """Grades the samples of a run, and writes them with their verdicts to `stream`."""
    problems: list[list[Row]] = [[] for _ in task.rows]
    for row in sorted(rows, key=lambda row: (row["problem"], row["attempt"])):
        problems[row["problem"]].append(row)
    found = [outcomes.settle(strategy, task, *pair) for pair in zip(task.rows, problems, strict=True)]
    for given, outcome, samples in zip(task.rows, found, problems, strict=True):
        # Write the references that were used for grading; they may be newer than the samples.
        own = {key: value for key, value in given.items() if key != "question"}
        for i, sample in enumerate(samples):
            verdict = {"correct": outcome.correct[i], "chosen": i == outcome.chosen, "mark": outcome.marks[i]}
            stream.write(json.dumps({**sample, **own, **verdict}, ensure_ascii=False) + "\n")
    stream.flush()
    forced = sum(strategy.forcing.acted(row) for row in rows)
    return Finished(strategy, found, sum(row["seconds"] for row in rows), forced)
