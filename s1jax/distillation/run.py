"""Sends the requests of a folder, many at a time, within limits and money, until all have a state."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Callable

from s1jax.distillation.answers import Answer, Answers
from s1jax.distillation.control import Control, Progress, Reason, Stop
from s1jax.distillation.limits import Hold, Limits
from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.spending import Spending
from s1jax.distillation.states import judge, meaning
from s1jax.distillation.teacher import Teacher
from s1jax.distillation.work import Job, Work
from s1jax.remote.client import RemoteError
from s1jax.remote.reply import Completion, Usage

_PROBES = 3  # replies without thinking that end a run; until one has thinking, no more requests are in flight
_FIRST_FAILURES, _FAILURES = 20, 100  # requests that fail for good in a row and end a run: before any answer, after one
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds before a failed request is sent again; doubled each time
_REPORT = 0.1  # seconds between two reports of progress


class Run:
    """One run over a folder.

    Attributes:
      counts: requests by state that this run has given one.
      tokens: of the answers of this run.
      without_usage: answers that do not say what they are billed for.
      longer: answers with more tokens than `max_tokens`.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: DistilSettings,
        work: Work,
        answers: Answers,
        spending: Spending,
        on_progress: Callable[[Progress], object],
        on_note: Callable[[str], object],
    ):
        """Sends nothing yet; `go` does."""
        self._teacher, self._settings, self._work = teacher, settings, work
        self._answers, self._spending = answers, spending
        self._on_progress, self._on_note = on_progress, on_note
        self.counts: collections.Counter[str] = collections.Counter()
        self.tokens = self.without_usage = self.longer = 0
        self._fresh = collections.deque(work.jobs)
        self._later: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop: Stop | None = None
        self._error: BaseException | None = None
        self._deadline = math.inf  # by the loop's clock, of what is in flight after a stop
        known = [entry for entry in work.entries(answers) if entry.state in ("done", "cut")]
        self._thinks = settings.allow_no_thinking or any(entry.thinks for entry in known)
        self._without = sum(not entry.thinks for entry in known)
        self._has_answer = bool(known)
        self._failures = 0
        self._reported = -math.inf

    async def go(self, control: Control | None = None) -> Stop | None:
        """Runs until every request has a state; returns why it ended earlier.

        Raises:
          OSError: a line could not be written. What is in flight counts as possible spend.
        """
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._begun = self._answered_at = self._loop.time()
        self._announced = 0.0
        limits = self._settings
        self._limits = Limits(
            limits.max_in_flight, limits.requests_per_minute, limits.tokens_per_minute, self._loop.time
        )
        self._check_thinking()
        if control is not None:
            control.listen(lambda *asked: self._loop.call_soon_threadsafe(self._asked_to_stop, *asked))
        try:
            await self._send_all()
            await self._finish()
        finally:
            if control is not None:
                control.listen(None)
            for task in self._tasks:  # of a run that was itself cancelled
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error
        self._report(last=True)
        return self._stop

    async def _send_all(self) -> None:
        while self._stop is None and self._error is None:
            now = self._loop.time()
            due = self._later[0][0] if self._later else math.inf
            job = self._later[0][2] if due <= now else self._fresh[0] if self._fresh else None
            if job is None:
                if not self._tasks and not self._later:
                    return
                await self._sleep(due - now)
                continue
            delay = self._limits.delay(self._tokens(job))
            if delay == 0 and not self._spending.fits(job.dollars):
                if not self._tasks:
                    self._end("budget", "max_dollars does not cover the worst case of another request")
                    return
                delay = math.inf
            if delay > 0:
                await self._sleep(min(delay, max(due - now, 0.0) if due > now else math.inf))
                continue
            if due <= now:
                heapq.heappop(self._later)
            else:
                self._fresh.popleft()
            self._start(job)

    async def _finish(self) -> None:
        """Waits for what is in flight, as long as that may take."""
        while self._tasks:
            left = self._deadline - self._loop.time()
            if self._error is not None or left <= 0:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                return
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        """Waits until something has happened, at most some seconds."""
        self._wake.clear()
        timer = self._loop.call_later(seconds, self._wake.set) if seconds < math.inf else None
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _tokens(self, job: Job) -> int:
        return job.prompt + self._settings.max_tokens

    def _start(self, job: Job) -> None:
        hold = self._limits.start(self._tokens(job))
        send = self._spending.send(job.key, job.prompt, self._settings.max_tokens, job.dollars)
        task = self._loop.create_task(self._ask(job, hold, send))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._error is None:
            self._error = error
        self._wake.set()
        try:
            self._report()
        except BaseException as error:  # of the caller's own function: it ends the run instead of vanishing here
            self._error = self._error or error

    async def _ask(self, job: Job, hold: Hold, send: str) -> None:
        """Sends one request and writes down what became of it."""
        used, request = 0, job.request(self._settings)
        begun = self._loop.time()
        try:
            found = await self._teacher.chat(
                request.messages, max_tokens=self._settings.max_tokens, more=request.sampling
            )
            used = self._answered(job, send, found, self._loop.time() - begun)
            self._limits.answered()
        except RemoteError as error:
            self._failed(job, hold, send, error)
        except asyncio.CancelledError:
            self._spending.lose(send)
            raise
        finally:
            self._limits.end(hold, used)

    def _answered(self, job: Job, send: str, found: Completion, seconds: float) -> int:
        """Writes down an answer; returns the tokens that it took."""
        settings, usage = self._settings, found.usage
        verdict = judge(found, settings.max_tokens)
        job.attempts += 1
        dollars = self._cost(job, usage)
        line = self._line(job, verdict.state, verdict.error, send, dollars).with_completion(found)
        self._answers.append(dataclasses.replace(line, seconds=round(seconds, 3), final=verdict.state == "failed"))
        self._spending.settle(send, dollars or 0.0)
        self.counts[verdict.state] += 1
        self._has_answer, self._failures, self._announced = True, 0, 0.0
        self._answered_at = self._loop.time()
        if verdict.state in ("done", "cut"):
            self._without += not found.reasoning.strip()
            self._thinks |= bool(found.reasoning.strip())
        self._check_thinking(usage)
        self._check_bounds(job, usage, dollars)
        if usage is None:
            self.without_usage += 1
            return self._tokens(job)
        self.tokens += usage.completion_tokens
        return usage.prompt_tokens + usage.completion_tokens

    def _cost(self, job: Job, usage: Usage | None) -> float | None:
        price = self._settings.price
        if usage is not None and usage.cost is not None:
            return usage.cost
        if price is None:
            return None
        return job.dollars if usage is None else price.of(usage.prompt_tokens, usage.completion_tokens)

    def _line(self, job: Job, state: str, error: str, send: str, dollars: float | None) -> Answer:
        return Answer(
            key=job.key, id=job.question.id, answer=job.answer, state=state, error=error, send=send,  # type: ignore[arg-type]
            dollars=dollars, attempts=job.attempts, lost=job.lost, max_tokens=self._settings.max_tokens,
            endpoint=self._teacher.address, model=self._teacher.model,
        )  # fmt: skip

    def _failed(self, job: Job, hold: Hold, send: str, error: RemoteError) -> None:
        """Acts on a request that got no answer."""
        means = meaning(error)
        if means == "pause" and error.status != 429 and self._answered_at > hold.sent_at:
            means = "again"  # others were answered meanwhile: it is this request's own failure
        if means == "stop" or means == "pause":
            if error.lost:
                self._lose(job, send)
            else:
                self._spending.free(send)
            heapq.heappush(self._later, (0.0, next(self._order), job))
            if means == "stop":
                self._end("endpoint", str(error).rstrip("."))
            else:
                self._pause(hold, error)
            return
        job.attempts += 1
        if error.lost:
            self._lose(job, send)
        line = self._line(
            job, "refused" if means == "refused" else "failed", str(error), "" if error.lost else send, 0.0
        )
        final = means != "again"
        self._answers.append(dataclasses.replace(line, final=final))
        if not error.lost:
            self._spending.settle(send, 0.0)
        if not final and job.attempts < job.last:
            wait = min(_FIRST_WAIT * 2 ** (self._settings.max_attempts - (job.last - job.attempts) - 1), _LONGEST_WAIT)
            due = self._loop.time() + wait * (1 + random.random() / 4)  # so that they do not all come back together
            heapq.heappush(self._later, (due, next(self._order), job))
            return
        self.counts["refused" if means == "refused" else "failed"] += 1
        self._failures += means != "refused"
        most = _FAILURES if self._has_answer else _FIRST_FAILURES
        if self._failures >= most:
            self._end("endpoint", f"{most} requests in a row have failed, the last one because {error}")

    def _lose(self, job: Job, send: str) -> None:
        job.lost += 1
        self._spending.lose(send)

    def _pause(self, hold: Hold, error: RemoteError) -> None:
        before = max(self._limits.resume_at, self._loop.time())
        pause = self._limits.slow_down(hold, error.retry_after)
        if pause > self._settings.longest_pause:
            self._end("endpoint", f"the endpoint wants a pause of {pause:.0f} s ({error})")
        if error.retry_after is not None:
            self._announced += max(self._limits.resume_at - before, 0.0)
        silent = self._loop.time() - self._answered_at - self._announced
        if silent > self._settings.patience:
            self._end("endpoint", f"nothing was answered for {silent:.0f} s ({error})")

    def _check_thinking(self, usage: Usage | None = None) -> None:
        """Ends the run where the first replies hold no thinking; lets all requests go once one has some."""
        probes = _PROBES if self._thinks else _PROBES - self._without
        self._limits.most = self._settings.max_in_flight
        if not (self._thinks and self._has_answer):  # no more of them than are needed to know
            self._limits.most = min(max(probes, 1), self._settings.max_in_flight)
        if not self._thinks and self._without >= _PROBES:
            hidden = (
                f" although it bills {usage.reasoning_tokens:,} tokens of it"
                if usage and usage.reasoning_tokens
                else ""
            )
            self._end(
                "endpoint",
                f"the first {self._without} replies of {self._teacher.model} hold no thinking{hidden}; choose a teacher"
                " that shows it, or allow_no_thinking to go on",
            )

    def _check_bounds(self, job: Job, usage: Usage | None, dollars: float | None) -> None:
        """Notes an answer that is longer than it may be; ends the run where it costs more than its worst case."""
        settings = self._settings
        if usage is not None and usage.completion_tokens > settings.max_tokens:
            if not self.longer:
                self._on_note(
                    f"the endpoint generated {usage.completion_tokens:,} tokens where {settings.max_tokens:,} were"
                    " allowed; it may know another name of the limit (limit_field)."
                )
            self.longer += 1
        if settings.max_dollars is not None and dollars is not None and dollars > job.dollars * (1 + 1e-9):
            what = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,}" if usage else "its"
            self._end(
                "endpoint",
                f"a request with {what} tokens cost {dollars:.6f} USD, more than its worst case of {job.dollars:.6f}"
                f" ({job.prompt:,} + {settings.max_tokens:,} tokens); correct dollars_per_million, limit_field or"
                " prompt_overhead",
            )

    def _asked_to_stop(self, grace: float, sentence: str) -> None:
        self._deadline = min(self._deadline, self._loop.time() + grace)
        self._end("user", sentence)
        self._wake.set()

    def _end(self, reason: Reason, sentence: str) -> None:
        if self._stop is None:
            self._stop = Stop(reason, sentence)

    def _report(self, last: bool = False) -> None:
        now = self._loop.time()
        if last or now - self._reported >= _REPORT:
            self._reported = now
            done = self._work.kept.total() + self.counts.total()
            dollars = self._spending.spent + self._spending.possible
            total = len(self._work.keys)
            self._on_progress(Progress(done, total, len(self._tasks), self.tokens, now - self._begun, dollars))
