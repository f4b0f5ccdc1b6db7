"""The bar's time left where units take minutes, and what a launcher says at SIGTERM while it waits for a step."""

import io
import os
import pathlib
import subprocess
import sys

import pytest
from rich.console import Console

from s1jax.cli import progress

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def terminal(monkeypatch):
    """Takes the place of standard error; not a fixture, because pytest sets that again before a test is called."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def shown(bar):
    text = io.StringIO()
    Console(file=text, width=200).print(bar._bar.get_renderable())
    return text.getvalue()


def test_time_left_of_steps_of_minutes(clock, monkeypatch):
    """Steps 5 to 8 of 10, of 40 minutes each; the first update, of step 5, starts the count."""
    terminal(monkeypatch)
    bar = progress.Bar("training", 10)
    assert "-:--:--" in shown(bar)
    bar.update(5)
    clock.now += 1000
    assert bar.time_left() is None
    clock.now += 1400
    bar.update(6)
    assert bar.time_left() == 4 * 2400 and "2:40:00" in shown(bar)
    clock.now += 600
    assert "2:30:00" in shown(bar)
    clock.now += 1800
    bar.update(7)
    assert "2:00:00" in shown(bar)
    clock.now += 10**5
    assert bar.time_left() == 0 and "0:00:00" in shown(bar)


def test_lines_have_the_time_left(clock, capsys):
    with progress.Bar("training", 4) as bar:
        for done in (1, 2, 3, 4):
            bar.update(done, f"step {done}")
            clock.now += 100
    assert capsys.readouterr().err.splitlines() == [
        "training: 0 of 4",
        "training: 2 of 4, 200 s left, step 2",
        "training: 3 of 4, 100 s left, step 3",
        "training: 4 of 4, step 4",
        "training: 4 of 4, step 4",
    ]


def test_a_sentence_above_the_bar(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.Bar("training", 4) as bar:
        bar.say("SIGTERM: [bold] \x1b[2J")
    assert "SIGTERM: [bold] \\x1b[2J" in screen.getvalue()


# The main thread waits in C code that no signal interrupts, as it does for a step, until the sentence was said.
WAITING = """
import ctypes, os, signal
from absl import flags
from s1jax.cli import processes

flags.FLAGS(["x"])
libc = ctypes.CDLL(None)
lock = ctypes.create_string_buffer(64)  # of all zeros: PTHREAD_MUTEX_INITIALIZER

def said():
    print("said", flush=True)
    libc.pthread_mutex_unlock(lock)

stop = processes.stop_asked(said)
assert not stop(1)
libc.pthread_mutex_lock(lock)
os.kill(os.getpid(), signal.SIGTERM)
libc.pthread_mutex_lock(lock)
print("the step is over", stop(2), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("the second changes nothing", stop(3), flush=True)
"""


def test_a_sigterm_is_answered_while_a_step_runs():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", WAITING], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["said", "the step is over True", "the second changes nothing True"]


def test_a_resumed_run_begins_where_it_stopped(capsys):
    with progress.Bar("loading", 6) as bar:
        bar.resume(3)
        bar.phase("training")
        assert bar.time_left() is None
    assert "training: 3 of 6\n" in capsys.readouterr().err
