"""Rows of a check: what passes, what fails, and what has no time left."""

import pytest

from s1jax.check import report
from s1jax.check.report import Check, Figure, Line, Outcome


class Clock:
    """Seconds that only the checks advance."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def taking(self, seconds, outcome=None):
        def run():
            self.now += seconds
            if isinstance(outcome, Exception):
                raise outcome
            return outcome or Outcome({"error": Figure(0.25, "%")}, note="fine")

        return run


def test_a_check_that_raises_does_not_end_the_others():
    clock = Clock()
    checks = [
        Check("a", "good", clock.taking(2)),
        Check("a", "broken", clock.taking(1, ValueError("no such\nkernel"))),
        Check("a", "wrong", clock.taking(1, Outcome({"error": Figure(9, "%")}, False, "the limit is 1 %"))),
        Check("a", "elsewhere", clock.taking(0, report.NotHereError("it runs on TPUs"))),
        Check("a", "large", clock.taking(1, RuntimeError("RESOURCE_EXHAUSTED: Out of memory"))),
    ]
    seen = []
    lines = report.run_all(checks, {}, seen.append, seen.append, clock)
    assert [(line.name, line.status, line.note, line.seconds) for line in lines] == [
        ("good", "pass", "fine", 2), ("broken", "fail", "ValueError: no such kernel", 1),
        ("wrong", "fail", "the limit is 1 %", 1), ("elsewhere", "not run", "it runs on TPUs", 0),
        ("large", "not run", "the memory of the device is not enough", 1),
    ]  # fmt: skip
    assert [line.name for line in report.failed(lines)] == ["broken", "wrong"]
    assert seen == [item for pair in zip(checks, lines, strict=True) for item in pair]


def test_a_part_has_seconds_of_its_own():
    clock = Clock()
    checks = [Check("a", "1", clock.taking(3)), Check("a", "2", clock.taking(3)), Check("a", "3", clock.taking(3)),
              Check("b", "4", clock.taking(9)), Check("c", "5", clock.taking(1))]  # fmt: skip
    lines = report.run_all(checks, {"a": 5, "b": 1}, clock=clock)
    assert [line.status for line in lines] == ["pass", "pass", "not run", "pass", "pass"]
    assert lines[2].note == "the 5 s of this part were used up"


def test_the_time_of_a_step_is_without_the_prefill(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(report.time, "perf_counter", clock)

    def run(steps):
        clock.now += 5 + 0.25 * steps

    assert report.step_seconds(run, 10, 3) == 0.25
    with pytest.raises(report.NotHereError, match=r"10 steps took 5\.01 s, 2 steps 5\.01 s"):
        report.step_seconds(lambda steps: setattr(clock, "now", clock.now + 5.01), 10, 3)


def test_a_record_has_every_figure_with_its_unit():
    line = Line("a", "b", "pass", {"speed": Figure(1234.5, "tokens/s")}, "", 1.5)
    assert line.record()["figures"] == {"speed": {"value": 1234.5, "unit": "tokens/s"}}
    assert Line.of(line.record()) == line


def test_figures_are_short():
    figures = [Figure(98.76, "%"), Figure(0.0213, "%"), Figure(2.9123, "TB/s"), Figure(12345.6, "tokens/s")]
    assert [str(figure) for figure in figures] == ["98.8 %", "0.02 %", "2.91 TB/s", "12,346 tokens/s"]
