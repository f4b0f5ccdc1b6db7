"""Rates, pauses and the window, on a clock that jumps: no test waits, and none depends on how fast the machine is."""

import asyncio
import bisect
import random

import pytest

from s1jax.distillation import distil as distil_lib
from s1jax.distillation.settings import DistilSettings
from s1jax.remote.client import RemoteError
from s1jax.remote.reply import Completion, Usage
from tests.distillation.conftest import rows


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose time is that of the next timer as soon as nothing else is to be done."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


class Teacher:
    """Answers after `seconds()` with `tokens()`, or raises what `refuse(self, now)` returns."""

    address, model = "here", "big"

    def __init__(self, seconds=lambda: 1.0, tokens=lambda: 40, refuse=lambda self, now: None):
        self._seconds, self._tokens, self._refuse = seconds, tokens, refuse
        self.sent, self.used, self.refused, self.in_flight, self.most = [], [], [], 0, 0

    async def chat(self, messages, *, max_tokens=0, more=None):
        now = asyncio.get_running_loop().time()
        self.sent.append(now)
        if (error := self._refuse(self, now)) is not None:
            self.used.append(0)
            self.refused.append(now)
            raise error
        place = len(self.used)
        self.used.append(0)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        tokens = self._tokens()
        await asyncio.sleep(self._seconds())
        self.in_flight -= 1
        self.used[place] = 20 + tokens
        return Completion("42", "thinking", "big", "", "stop", Usage(20, tokens))

    async def close(self):
        pass


def busy(retry_after=None):
    return RemoteError("busy", "slow down", 429, retry_after)


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Runs a teacher on a clock that jumps; returns the summary."""

    def wait(work, control):
        with asyncio.Runner(loop_factory=Jumping) as runner:
            return runner.run(work)

    monkeypatch.setattr(distil_lib, "_wait", wait)

    def run(teacher, count, **settings):
        settings = DistilSettings(max_tokens=100, prompt_overhead=0, **settings)
        found = distil_lib.distil(rows(count), tmp_path / "out", teacher, settings)
        assert found.states == {"done": count}  # whatever happens on the way
        return found

    return run


def most_in_a_minute(times, amounts):
    """The largest sum of amounts whose times are within any 60 seconds."""
    sums = [0]
    for amount in amounts:
        sums.append(sums[-1] + amount)
    return max(sums[bisect.bisect_left(times, at + 60 - 1e-9)] - sums[i] for i, at in enumerate(times))


@pytest.mark.parametrize("rate", [60, 300, 6000])
def test_requests_per_minute_are_obeyed_within_two_percent(go, rate):
    teacher = Teacher(seconds=lambda: random.uniform(0.1, 20))
    go(teacher, 700, max_in_flight=3000, requests_per_minute=rate)
    steady = [at for at in teacher.sent if at > 20]  # after the first answers, which are few at a time
    assert most_in_a_minute(teacher.sent, [1] * 700) <= rate * 1.02
    if len(steady) > 1:
        assert (len(steady) - 1) / (steady[-1] - steady[0]) == pytest.approx(rate / 60, rel=0.02)


def test_tokens_per_minute_are_obeyed_and_unused_ones_given_back(go):
    rng = random.Random(0)
    teacher = Teacher(seconds=lambda: rng.uniform(0.5, 8), tokens=lambda: rng.randint(1, 30))
    go(teacher, 600, max_in_flight=500, tokens_per_minute=2000)
    assert most_in_a_minute(teacher.sent, teacher.used) <= 2000
    # Every request reserves 130 tokens or more and uses 36 on average: what is reserved would take 39 minutes.
    assert sum(teacher.used) / 2000 <= teacher.sent[-1] / 60 + 1 < 1.6 * sum(teacher.used) / 2000


@pytest.mark.parametrize("retry_after", [7.0, 61.5])
def test_retry_after_is_obeyed_to_the_second(go, retry_after):
    rng = random.Random(1)

    def refuse(teacher, now):  # storms: everything that comes within a second of it is refused
        return busy(retry_after) if 30 < now < 31 or 200 < now < 201 or 202 < now < 203.5 else None

    teacher = Teacher(seconds=lambda: rng.uniform(0.2, 3), refuse=refuse)
    go(teacher, 3000, max_in_flight=40, max_attempts=1)
    assert teacher.refused
    for at in teacher.refused:
        after = [sent for sent in teacher.sent if at < sent]
        assert min(after) >= at + retry_after
    for at in sorted(set(teacher.refused)):  # and not much longer
        later = [other for other in teacher.refused if at < other < at + retry_after]
        assert later or min(sent for sent in teacher.sent if sent > at) <= at + retry_after + 1


def test_the_window_finds_what_the_endpoint_takes(go):
    """An endpoint that takes 50 requests at a time refuses few of them, and is kept busy."""
    teacher = Teacher(refuse=lambda self, now: busy() if self.in_flight >= 50 else None)
    go(teacher, 5000, max_in_flight=400, max_attempts=1)
    assert len(teacher.refused) < 0.15 * 5000
    assert teacher.most == 50 and teacher.sent[-1] < 4 * 5000 / 50


def test_a_storm_without_retry_after_backs_off(go):
    teacher = Teacher(refuse=lambda self, now: busy() if 2 < now < 100 else None)
    go(teacher, 500, max_in_flight=50, max_attempts=1)
    assert len(teacher.refused) <= 2 * 50 + 8  # those in flight, halved each time, and one each time in the end
    assert teacher.sent[-1] < 100 + 60 + 500 / 5


def test_retries_back_off(go):
    failures = {}

    def refuse(teacher, now):
        failures.setdefault("first", now)
        return RemoteError("server", "no", 500) if len(teacher.sent) <= 4 else None

    teacher = Teacher(refuse=refuse)
    go(teacher, 1, max_attempts=5)
    gaps = [b - a for a, b in zip(teacher.sent, teacher.sent[1:], strict=False)]
    assert all(wait <= gap <= 1.3 * wait for wait, gap in zip([1, 2, 4, 8], gaps, strict=True))
