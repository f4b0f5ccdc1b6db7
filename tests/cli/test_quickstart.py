"""`s1jax quickstart`: which commands it runs, and how it ends."""

import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Commands are printed instead of run; evaluate leaves its picture; the one that BREAK names fails.
CODE = """
import pathlib, sys
from s1jax.cli import command, quickstart

def stand_in(arguments):
    print("RAN", *arguments)
    if arguments[0] == "evaluate":
        pathlib.Path(arguments[3].partition("=")[2]).mkdir(parents=True)
        pathlib.Path(arguments[3].partition("=")[2], "scaling.png").touch()
    return 2 if arguments[0] == BREAK else 0

quickstart._run = stand_in
command.run(quickstart.main)
"""


def run(folder, *flags, fails=""):
    code = f"BREAK = {fails!r}\n{CODE}"
    return subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def ran(outcome):
    return [line.removeprefix("RAN ") for line in outcome.stdout.splitlines() if line.startswith("RAN ")]


def test_it_trains_and_evaluates(tmp_path):
    outcome = run(tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    train, evaluate = ran(outcome)
    assert train == "train --config=countdown_s1 --workdir=runs/quickstart"
    assert evaluate.startswith("evaluate --checkpoint=runs/quickstart --task=countdown ")
    assert "--out=runs/quickstart" in evaluate and "--waits=0,1,2,4,6,8" in evaluate
    assert "1/2  Fine-tuning package:countdown_base on 1,000 examples" in outcome.stdout
    assert "2/2  Answering 400 held-out problems" in outcome.stdout
    assert "runs/quickstart/scaling.png" in outcome.stdout and "runs/quickstart/results.json" in outcome.stdout

    outcome = run(tmp_path, "--out=elsewhere")
    train, evaluate = ran(outcome)
    assert "--workdir=elsewhere" in train and "--checkpoint=elsewhere" in evaluate


def test_it_stops_where_training_fails(tmp_path):
    outcome = run(tmp_path, fails="train")
    assert outcome.returncode == 2 and [line.split()[0] for line in ran(outcome)] == ["train"]


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(75)", 75), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_is_that_of_the_command(tmp_path, code, expected):
    (tmp_path / "s1jax").mkdir()
    (tmp_path / "s1jax" / "cli.py").write_text(code)
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from s1jax.cli import quickstart; print(quickstart._run([]))"
    )
    outcome = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert outcome.stdout == f"{expected}\n", outcome.stderr


def test_sigterm_reaches_the_command(tmp_path):
    (tmp_path / "s1jax").mkdir()
    (tmp_path / "s1jax" / "cli.py").write_text(
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint('up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from s1jax.cli import quickstart; print(quickstart._run([]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=tmp_path, env={}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "143\n"
