"""What launch.evaluate counts as the seconds of a run, with an engine that is slow to load and to compile."""

import collections
import time
import types

import jax
import pytest

from s1jax import perf
from s1jax.cli import evaluate
from s1jax.config.sampling import SamplingParams
from s1jax.evaluation import strategies
from s1jax.tasks import task as task_lib

SLOW = 0.5


class SlowEngine:
    """Takes no time but for its programs: one for every length of thinking."""

    def __init__(self):
        time.sleep(SLOW)

        def compiling(x):
            time.sleep(SLOW)
            return x

        self._program = jax.jit(compiling)

    def stream(self, rows, controls, *, progress, names):
        assert len(names) == len(rows) and controls.wait == "Wait"
        for i, row in enumerate(rows):
            self._program(jax.numpy.zeros(row["max_thinking_tokens"]))
            progress(i, 40 * i, 30 * i)
            yield i, {"answer": "1", "thinking_tokens": 3, "answer_tokens": 1, "thinking_end": "natural"}
        time.sleep(0.01)
        progress(len(rows), 40 * len(rows), 30 * len(rows))


@pytest.mark.parametrize("order", [("none", "forcing:max=8"), ("forcing:max=8", "none")])
def test_seconds_are_of_sampling_alone_in_any_order(order):
    task = task_lib.Task("sums", [{"question": "q"}] * 3, lambda text, row: text, str.__eq__, lambda answer, row: True)
    journal = types.SimpleNamespace(append=lambda row: None)
    made, details = [], []

    def engine():
        if not made:
            made.append(SlowEngine())
        return made[0]

    seconds = collections.Counter()
    begun = time.monotonic()
    with perf.clock() as clock:
        for text in order:
            rows = []
            evaluate.sample_run(
                engine, task, strategies.parse(text), ["q"] * 3, SamplingParams(max_thinking_tokens=16),
                journal, rows, lambda done, detail: details.append(detail), clock,
            )  # fmt: skip
            assert sorted(row["problem"] for row in rows) == [0, 1, 2]
            seconds[text] = sum(row["seconds"] for row in rows)
    assert time.monotonic() - begun > 3 * SLOW  # it was loaded, and two programs were compiled
    assert all(0 <= count < SLOW / 2 for count in seconds.values())
    # Tokens of the last report in 10 ms and more.
    speed, share = details[-1].split(" tokens/s, ")
    assert share == "75 % thinking" and 0 < int(speed.replace(",", "")) <= 12_000


def test_nothing_is_loaded_where_nothing_is_wanted():
    task = task_lib.Task("sums", [{"question": "q"}], lambda text, row: text, str.__eq__, lambda answer, row: True)
    rows = [{"problem": 0, "attempt": 0, "seconds": 1.0}]
    evaluate.sample_run(None, task, strategies.Strategy(), ["q"], SamplingParams(), None, rows, None, None)
    assert len(rows) == 1
