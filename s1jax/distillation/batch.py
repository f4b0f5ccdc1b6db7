"""Asks a teacher by batches, at the price and in the time of OpenAI's Batch API: `s1jax.distillation.batch.run`.

The requests and their keys are those of `s1jax.distil`. So a folder may be filled by both, and nothing is paid twice.
`submit` uploads what the folder lacks, `collect` fetches what is answered. `write` and `read` do the same with files
that the user carries. `cancel` gives requests back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

from s1jax.distillation import batch_journal
from s1jax.distillation import distil as distil_lib
from s1jax.distillation import plan as plan_lib
from s1jax.distillation import questions as questions_lib
from s1jax.distillation import rows as rows_lib
from s1jax.distillation import work as work_lib
from s1jax.distillation.answers import Answers
from s1jax.distillation.batch_journal import MOST_REQUESTS, BatchJournal, Known
from s1jax.distillation.batch_results import Results
from s1jax.distillation.control import Stop
from s1jax.distillation.distil import Summary
from s1jax.distillation.plan import Plan
from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.spending import Spending
from s1jax.distillation.work import Work
from s1jax.errors import UserError
from s1jax.io import files
from s1jax.remote.batches import ENDED, Batch, Batches
from s1jax.remote.client import Client, Endpoint, RemoteError

Mode = Literal["submit", "collect", "write", "read", "cancel"]
_BUDGET = "max_dollars does not cover the worst case of another request"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a folder holds after a step of batch mode.

    Attributes:
      summary: of the folder, as of `s1jax.distil`; its `lost` and `possible_dollars` leave batches out.
      waiting: batches that have answers to collect, later.
      dollars: worst case of their requests in USD.
    """

    summary: Summary
    waiting: tuple[Known, ...]
    dollars: float


def run(
    mode: Mode,
    questions: questions_lib.Source,
    out: str | os.PathLike[str],
    endpoint: Endpoint,
    settings: DistilSettings | None = None,
    *,
    results: Sequence[str | os.PathLike[str]] = (),
    most_requests: int = MOST_REQUESTS,
    on_note: Callable[[str], object] = lambda sentence: None,
    on_plan: Callable[[Plan], object] = lambda plan: None,
) -> Outcome:
    """Does one step of batch mode.

    Every step can be repeated, whatever ended it: a batch whose creation was not confirmed is looked for in the
    endpoint's list before another is created.

    Args:
      mode: `submit` uploads files and creates batches for all requests that the folder lacks. `collect` downloads what
        has ended; requests that expired are asked again by the next `submit`. `write` writes files for the user to
        upload, `read` takes `results`. `cancel` cancels batches that run, which then are collected, and forgets files
        that nobody has uploaded.
      questions: as for `s1jax.distil`.
      out: the folder.
      endpoint: has the Files and Batch APIs of OpenAI for `submit`, `collect`, `cancel`.
      settings: as for `s1jax.distil`; the price is that of batches.
      results: files of responses, for `read`.
      most_requests: in a file.
      on_note: called with sentences that a person should read.
      on_plan: called once, before anything is sent, by `submit` and `write`.

    Raises:
      UserError: a file cannot be read, or the endpoint does not take or know a batch. What was done is kept.
    """
    settings = distil_lib.with_body(settings or DistilSettings(), endpoint)
    source = questions if isinstance(questions, str | os.PathLike) else list(questions)
    notes: list[str] = []
    if isinstance(source, str | os.PathLike):
        files.check_not_read([source], pathlib.Path(out) / rows_lib.ROWS, "out")
    asked = questions_lib.read(source, settings.num_questions, notes)
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    client = Client(dataclasses.replace(endpoint, retries=0), pauses=False)
    with contextlib.ExitStack() as held:
        answers = held.enter_context(Answers(folder))
        spending = Spending(folder, answers, settings.price, settings.max_dollars)
        held.callback(spending.close)
        journal = BatchJournal(folder)
        held.callback(journal.close)
        work = work_lib.find(asked, client, settings, answers, spending.lost)
        sentence = batch_journal.leave(work, folder)
        if mode in ("submit", "write"):
            notes += [sentence] if sentence else []
            on_plan(plan_lib.make(len(asked), work, answers, settings, spending.spent, spending.possible))
        step = _Step(client, settings, folder, answers, spending, journal, most_requests, notes)
        try:
            stop = asyncio.run(step.go(mode, work, results))
        except RemoteError as error:
            raise UserError(f"{error}; what was done is kept, and the same command goes on from here.") from None
        finally:
            rows = rows_lib.write(
                folder, source, asked, work.keys, answers, answers=settings.answers,
                keep_without_thinking=settings.allow_no_thinking, notes=notes,
            )  # fmt: skip
            for note in notes:
                on_note(note)
        waiting = tuple(known for known in journal.known.values() if known.step != "ended")
        summary = distil_lib.summarise(rows, work, answers, spending, stop)
        asked_ = [each for known in waiting for each in batch_journal.asked(folder, known.name).values()]
        open_ = [each.dollars for each in asked_ if spending.is_open(each.key)]  # of earlier steps
        summary = dataclasses.replace(
            summary, lost=summary.lost - len(open_), possible_dollars=max(summary.possible_dollars - sum(open_), 0.0)
        )
        return Outcome(summary, waiting, sum(open_) + spending.reserved)


class _Step:
    """One step over an open folder."""

    def __init__(
        self,
        client: Client,
        settings: DistilSettings,
        folder: pathlib.Path,
        answers: Answers,
        spending: Spending,
        journal: BatchJournal,
        most: int,
        notes: list[str],
    ):
        """Takes the open files of the folder."""
        self._client, self._batches, self._settings = client, Batches(client), settings
        self._folder, self._answers, self._spending, self._journal = folder, answers, spending, journal
        self._most, self._notes = most, notes
        self._results = Results(client, settings.price, answers, spending)

    async def go(self, mode: Mode, work: Work, results: Sequence[str | os.PathLike[str]]) -> Stop | None:
        """Does the step; returns why it ended early.

        Raises:
          RemoteError: of the endpoint.
        """
        try:
            if mode == "read":
                self._read([pathlib.Path(each) for each in results])
            elif mode == "collect":
                await self._collect()
            elif mode == "cancel":
                await self._cancel()
            else:
                return await self._ask(work, by_hand=mode == "write")
        finally:
            await self._client.close()
        return None

    async def _ask(self, work: Work, by_hand: bool) -> Stop | None:
        """Creates batches for all requests of the work, after those that an earlier step has begun."""
        settings, stop = self._settings, None
        thinks = settings.allow_no_thinking or any(entry.thinks for entry in self._answers.entries.values())
        if work.jobs and not thinks and not by_hand:
            raise UserError(
                f"no reply of {self._client.model} with thinking is known, and a batch would show too late that there"
                " is none; ask a few questions without batch mode first (num_questions=3), or set allow_no_thinking."
            )
        for known in self._own():
            if known.step not in ("created", "manual"):
                if not self._covers(known):
                    return Stop("budget", _BUDGET)
                await self._create(known)
        jobs, dollars = [], 0.0
        for job in work.jobs:
            if not self._spending.fits(dollars + job.dollars):
                stop = Stop("budget", _BUDGET)
                break
            jobs.append(job)
            dollars += job.dollars
        for part in batch_journal.chunks(jobs, self._client.endpoint, settings, self._most):
            name = self._journal.write(part, self._client.endpoint, self._client.address, settings)
            about = {"requests": len(part), "endpoint": self._client.address}
            if by_hand:  # reserved before the user can upload it
                self._reserve(name)
                self._journal.step(name, "manual", **about)
                path = batch_journal.path(self._folder, name)
                self._notes.append(f"{len(part):,} requests are in {path}; upload it, and read its results.")
            else:
                await self._create(self._journal.step(name, "written", **about))
        return stop

    def _covers(self, known: Known) -> bool:
        """Whether the money left covers what is not yet reserved of the worst case of a batch."""
        asked = batch_journal.asked(self._folder, known.name).values()
        return self._spending.fits(sum(each.dollars for each in asked if not self._spending.is_open(each.key)))

    def _reserve(self, name: str) -> list[str]:
        """Reserves the worst case of each request of a batch, unless an earlier step has; returns the reservations."""
        spending = self._spending
        return [
            spending.reopen(each.key) or spending.send(each.key, each.prompt, each.max_tokens, each.dollars)
            for each in batch_journal.asked(self._folder, name).values()
        ]

    async def _create(self, known: Known) -> None:
        """Takes a batch from the step that it is at to `created`."""
        if known.step == "written":
            file = await self._batches.upload(batch_journal.path(self._folder, known.name))
            self._journal.step(known.name, "uploaded", file=file)
        if known.step == "creating" and (found := await self._batches.find(known.file)) is not None:
            self._journal.step(known.name, "created", id=found.id)
            return
        sends = self._reserve(known.name)
        self._journal.step(known.name, "creating")
        try:
            found = await self._batches.create(known.file, known.name)
        except RemoteError as error:
            if not error.lost:  # it was refused; otherwise the next step looks for it
                for send in sends:
                    self._spending.free(send)
                self._journal.step(known.name, "uploaded")
            raise
        self._journal.step(known.name, "created", id=found.id)
        self._notes.append(f"batch {found.id}: {known.requests:,} requests are submitted.")

    def _own(self) -> list[Known]:
        """Returns the batches at this endpoint that have not ended; says which are at another."""
        open_ = [known for known in self._journal.known.values() if known.step != "ended"]
        for known in open_:
            if known.endpoint != self._client.address:
                self._notes.append(f"the batch {known.name} is of {known.endpoint}; give that endpoint for it.")
        return [known for known in open_ if known.endpoint == self._client.address]

    async def _collect(self) -> None:
        for known in self._own():
            if known.step == "creating" and (found := await self._batches.find(known.file)) is not None:
                self._journal.step(known.name, "created", id=found.id)
            if known.step == "created":
                await self._collect_one(known, await self._batches.get(known.id))
            else:
                manual = known.step == "manual"
                what = "has no results yet; batch mode `read` takes them" if manual else "is not submitted"
                self._notes.append(f"the batch {known.name} of {known.requests:,} requests {what}.")

    async def _collect_one(self, known: Known, found: Batch) -> None:
        if found.status not in ENDED:
            done = f", {found.completed:,} of {found.total or known.requests:,} answered" if found.completed else ""
            self._notes.append(f"batch {known.id} is {found.status}{done}.")
            return
        paths = []
        for file, kind in ((found.output_file, "output"), (found.error_file, "errors")):
            if file:
                paths.append(batch_journal.path(self._folder, known.name, kind))
                await self._batches.download(file, paths[-1])
        counts = self._results.take(paths, batch_journal.asked(self._folder, known.name))
        left = self._free(known)
        self._journal.step(known.name, "ended", status=found.status)
        why = f" ({found.errors})" if found.errors else ""
        again = f"; {left:,} requests have no answer and cost nothing, and are asked again" if left else ""
        self._notes.append(f"batch {known.id} is {found.status}{why}: {_said(counts)}{again}.")

    def _read(self, paths: Sequence[pathlib.Path]) -> None:
        """Takes files of results that the user has fetched."""
        open_ = [known for known in self._journal.known.values() if known.step != "ended"]
        asked = {known.name: batch_journal.asked(self._folder, known.name) for known in open_}
        counts = self._results.take(paths, {key: each for some in asked.values() for key, each in some.items()})
        self._notes.append(f"{', '.join(map(str, paths))}: {_said(counts)}.")
        for known in open_:
            left = [key for key in asked[known.name] if self._spending.is_open(key)]
            if not left:
                self._journal.step(known.name, "ended")
            else:
                self._notes.append(
                    f"{len(left):,} of {known.requests:,} requests of {known.name} have no result yet; read more files,"
                    " or cancel to have them asked again."
                )

    async def _cancel(self) -> None:
        for known in self._own():
            if known.step == "creating" and (found := await self._batches.find(known.file)) is not None:
                self._journal.step(known.name, "created", id=found.id)
            if known.step == "created":
                status = (await self._batches.get(known.id)).status
                if status not in (*ENDED, "cancelling"):
                    status = (await self._batches.cancel(known.id)).status
                self._notes.append(f"batch {known.id} is {status}; collect what was answered.")
            else:
                left = self._free(known)
                self._journal.step(known.name, "ended", status="cancelled")
                self._notes.append(f"the batch {known.name} is forgotten; its {left:,} requests are asked again.")

    def _free(self, known: Known) -> int:
        """Ends the reservations of a batch that have no answer; returns their number."""
        count = 0
        for key in batch_journal.asked(self._folder, known.name):
            send = self._spending.reopen(key)
            if send is not None:
                self._spending.free(send)
                count += 1
        return count


def _said(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "no results"
