"""Asks a teacher questions and writes its answers as training rows: `s1jax.distil`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Callable, Coroutine
from typing import TypeVar

from s1jax.distillation import batch_journal
from s1jax.distillation import plan as plan_lib
from s1jax.distillation import questions as questions_lib
from s1jax.distillation import rows as rows_lib
from s1jax.distillation import work as work_lib
from s1jax.distillation.answers import Answers, Index
from s1jax.distillation.control import Control, Progress, Reason, Stop
from s1jax.distillation.plan import Plan
from s1jax.distillation.run import Run
from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.spending import Spending, look
from s1jax.distillation.teacher import Teacher
from s1jax.distillation.work import Work
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.remote.client import Client, Endpoint

SUMMARY = "summary.json"
T = TypeVar("T")
_WORDS = {"failed": "have failed for good", "refused": "were refused by the teacher's filter"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a folder holds after a run.

    Attributes:
      rows: of rows.jsonl.
      states: requests of this command by state: done, cut, refused, failed.
      left: requests without a state.
      lost: requests, of all runs, that may be billed although their answer never arrived.
      dollars: that the folder's answers cost, all runs included.
      possible_dollars: worst case of the lost requests.
      prompt_tokens: of all answers of the folder, as billed.
      completion_tokens: of all answers of the folder, as billed; thinking included.
      reason: why the run ended early: `budget` or `user`; None: it did not.
      stopped: the same in a sentence; empty: it did not.
    """

    rows: int
    states: collections.Counter[str]
    left: int
    lost: int
    dollars: float
    possible_dollars: float
    prompt_tokens: int
    completion_tokens: int
    reason: Reason | None
    stopped: str


def distil(
    questions: questions_lib.Source,
    out: str | os.PathLike[str],
    teacher: Endpoint | Teacher,
    settings: DistilSettings | None = None,
    *,
    on_note: Callable[[str], object] = lambda sentence: None,
    on_plan: Callable[[Plan], object] = lambda plan: None,
    on_progress: Callable[[Progress], object] = lambda progress: None,
    control: Control | None = None,
) -> Summary:
    """Asks a teacher for answers to all questions, and writes those that ended by themselves as training rows.

        teacher = s1jax.Endpoint("https://api.example.com/v1", "big-model", key=key)
        settings = s1jax.DistilSettings(answers=2, max_dollars=20, price=s1jax.Price(0.55, 2.19))
        summary = s1jax.distil("questions.jsonl", "traces", teacher, settings)

    The folder gets `answers.jsonl`, a line for every request that was paid for or has failed, as they come in; and at
    the end `rows.jsonl`, in the form of s1K. The same call goes on where an earlier one ended, however it did: a
    request is known by endpoint, model, messages, sampling and answer number, so questions may be added, removed and
    reordered. `sent.jsonl` remembers what may have been paid for although its answer never arrived, `summary.json` how
    the rows were made.

    Args:
      questions: see `s1jax.distillation.questions.records`.
      out: the folder; may exist. One process at a time writes it.
      teacher: an endpoint, or whatever answers chats.
      settings: see `DistilSettings`.
      on_note: called with sentences that a person should read.
      on_plan: called once, before anything is sent.
      on_progress: called now and then, at most ten times a second.
      control: stops the run from another thread or a signal handler.

    Returns:
      What the folder holds. A run that ended because of `max_dollars` or `control` returns, too, and says so.

    Raises:
      UserError: the questions cannot be read, the folder holds something else, or the teacher does not take requests
        (no money left, a wrong key, an unknown model, no thinking, nothing but failures). Answers up to then are kept.
      OSError: something could not be written.
    """
    settings = with_body(settings or DistilSettings(), teacher)
    source = questions if isinstance(questions, str | os.PathLike) else list(questions)
    notes: list[str] = []
    if isinstance(source, str | os.PathLike):
        files.check_not_read([source], pathlib.Path(out) / rows_lib.ROWS, "out")
    asked = questions_lib.read(source, settings.num_questions, notes)
    for note in notes:
        on_note(note)
    client = _client(teacher)
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with Answers(folder) as answers, contextlib.closing(_spending(folder, answers, settings)) as spending:
        work = work_lib.find(asked, client, settings, answers, spending.lost)
        _say(work, settings, on_note, folder)
        on_plan(plan_lib.make(len(asked), work, answers, settings, spending.spent, spending.possible))
        run = Run(client, settings, work, answers, spending, on_progress, on_note)
        ended: list[str] = []
        try:
            control = control or Control()
            stop = _wait(_go(run, client, control), control)
        finally:
            rows = rows_lib.write(
                folder, source, asked, work.keys, answers, answers=settings.answers,
                keep_without_thinking=settings.allow_no_thinking, notes=ended,
            )  # fmt: skip
        for note in (*ended, *_remarks(run, settings)):
            on_note(note)
        summary = summarise(rows, work, answers, spending, stop)
        _record(folder, source, client, settings, summary)
        if stop is not None and stop.reason == "endpoint":
            raise UserError(f"{stop.sentence}; what was answered is kept, and the same command goes on from here.")
        return summary


def plan(
    questions: questions_lib.Source,
    out: str | os.PathLike[str],
    teacher: Endpoint | Teacher,
    settings: DistilSettings | None = None,
    *,
    on_note: Callable[[str], object] = lambda sentence: None,
) -> Plan:
    """Returns what `distil` with the same arguments would take; sends and writes nothing."""
    settings = with_body(settings or DistilSettings(), teacher)
    notes: list[str] = []
    asked = questions_lib.read(questions, settings.num_questions, notes)
    for note in notes:
        on_note(note)
    folder, client = pathlib.Path(out), _client(teacher)
    index = Index(folder).read()
    spent, possible = look(folder, index, settings.price)
    work = work_lib.find(asked, client, settings, index)
    _say(work, settings, on_note, folder)
    return plan_lib.make(len(asked), work, index, settings, spent, possible)


def with_body(settings: DistilSettings, teacher: Endpoint | Teacher) -> DistilSettings:
    """Returns settings that have the fields of an endpoint's own `body`, because these are part of what is asked."""
    if not isinstance(teacher, Endpoint) or not teacher.body:
        return settings
    return dataclasses.replace(settings, body={**teacher.body, **settings.body})


def _client(teacher: Endpoint | Teacher) -> Teacher:
    """Returns a client that sends every request once and never waits by itself: the run does both."""
    if isinstance(teacher, Endpoint):
        return Client(dataclasses.replace(teacher, retries=0), pauses=False)
    return teacher


def _spending(folder: pathlib.Path, answers: Answers, settings: DistilSettings) -> Spending:
    return Spending(folder, answers, settings.price, settings.max_dollars)


async def _go(run: Run, teacher: Teacher, control: Control | None) -> Stop | None:
    try:
        return await run.go(control)
    finally:
        await teacher.close()


def _wait(work: Coroutine[None, None, T], control: Control) -> T:
    """Runs a coroutine to its end; in a thread of its own where this one has an event loop already, as a notebook's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="distil")
    thread.start()
    try:
        thread.join()
    except BaseException:  # of a notebook that is interrupted
        control.stop(0.0)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return found[0]


def _say(work: Work, settings: DistilSettings, on_note: Callable[[str], object], folder: pathlib.Path) -> None:
    """Leaves out what is in batches; says what is not asked for although it has no good answer."""
    if sentence := batch_journal.leave(work, folder):
        on_note(sentence)
    if work.kept["cut"]:
        more = f"; retry_cut asks for {work.larger:,} of them again" if work.larger else ""
        on_note(f"{work.kept['cut']:,} answers were cut at their limit of tokens, and are not asked for again{more}.")
    for state in ("failed", "refused"):
        if work.kept[state]:
            on_note(f"{work.kept[state]:,} requests {_WORDS[state]} before; retry_failed asks for them again.")


def _remarks(run: Run, settings: DistilSettings) -> list[str]:
    """Returns sentences about what the endpoint did otherwise than expected."""
    found = []
    if run.without_usage:
        counted = ", and count with their worst case" if settings.price else ""
        found.append(f"{run.without_usage:,} answers do not say what they are billed for{counted}.")
    if run.longer:
        found.append(f"{run.longer:,} answers have more tokens than max_tokens allows.")
    return found


def _record(
    folder: pathlib.Path, source: questions_lib.Source, teacher: Teacher, settings: DistilSettings, summary: Summary
) -> None:
    """Writes down how the rows of a folder were made: `summary.json`."""
    made = {
        "questions": os.fspath(source) if isinstance(source, str | os.PathLike) else "rows of a call",
        "endpoint": teacher.address,
        "model": teacher.model,
        "settings": {**dataclasses.asdict(settings), "body": dict(settings.body)},
        **{field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)},
    }
    files.write_text(folder / SUMMARY, json.dumps(made, indent=1) + "\n")


def summarise(rows: int, work: Work, answers: Answers, spending: Spending, stop: Stop | None) -> Summary:
    """Returns what a folder holds after a run that wrote `rows` rows and ended early because of `stop`."""
    states: collections.Counter[str] = collections.Counter()
    for entry in work.entries(answers):
        states[entry.state] += 1
    return Summary(
        rows=rows,
        states=states,
        left=len(work.keys) - states.total(),
        lost=spending.num_lost,
        dollars=spending.spent,
        possible_dollars=spending.possible,
        prompt_tokens=answers.totals.prompt_tokens,
        completion_tokens=answers.totals.completion_tokens,
        reason=stop.reason if stop else None,
        stopped=stop.sentence if stop else "",
    )
