"""Launchers whose terminal is closed, full, gone or ASCII, and text that would control it."""

import errno
import os
import subprocess
import sys

import pytest

from s1jax.cli import terminal

# A launcher that prints, and afterwards writes a file.
LAUNCHER = r"""
import pathlib, sys
from s1jax.cli import command

def main():
    print("a \u2265 b " * 2000)
    print("a note \u2588", file=sys.stderr)
    with open("out", "w") as file:
        numbers = file.fileno()
        file.write(f"{numbers} complete")

command.run(main)
"""


def launch(folder, redirections, **environment):
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "$LAUNCHER" {redirections}'],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "LAUNCHER": LAUNCHER, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("redirections", "code", "said"),
    [
        ("", 0, ""),
        (">/dev/full", terminal.LOST, "error: standard output could not be written (no space left on device)"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full 2>/dev/full", terminal.LOST, ""),
        ("| true", terminal.PIPE_CLOSED, ""),
    ],
)
def test_the_work_is_done_whatever_became_of_the_terminal(tmp_path, redirections, code, said):
    outcome = launch(tmp_path, redirections)
    number, complete = (tmp_path / "out").read_text().split()
    assert complete == "complete" and int(number) > 2, "messages would be written into the file"
    assert outcome.returncode == code
    assert said in outcome.stderr and "Traceback" not in outcome.stderr and "Exception" not in outcome.stderr


def test_what_the_locale_cannot_write_is_written_out(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    outcome = launch(tmp_path, "", **plain)
    assert outcome.returncode == 0 and outcome.stdout.startswith("a \\u2265 b") and "\\u2588" in outcome.stderr


@pytest.mark.parametrize(
    "text",
    [
        "\x1b]0;a title\x07", "\x1b]52;c;aGk=\x07", "\x1b[2J", "\x9b2J", "over\rwritten", "back\x08", "\u202egnp.exe",
        "\x00",
    ],
)  # fmt: skip
def test_no_text_controls_the_terminal(text):
    shown = terminal.safe(f"before {text} after\n\tthe end\r\n")
    assert shown.startswith("before ") and shown.endswith(" after\n\tthe end\n")
    assert all(sign.isprintable() or sign in "\n\t" for sign in shown)
    assert "\\x" in shown or "\\u" in shown or "\\r" in shown


def test_other_text_is_shown_as_it_stands():
    text = "\u4f60\u597d, \U0001f600 a\u0301 \u2028 x\u00a0y \\x1b $\\frac{1}{2}$\n"
    assert terminal.safe(text) == text


def test_errors_show_foreign_text_without_its_control_characters(tmp_path):
    from s1jax.cli import command

    code = 'from s1jax.cli import command; command.fail("tensor \\x1b[2Jx is unknown")'
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.stderr == "error: tensor \\x1b[2Jx is unknown\n"
    assert command.BAD_INPUT == 2


def test_a_wait_string_is_no_markup(monkeypatch, capsys):
    """rich took `[/]` for the end of a style, and raised."""
    from s1jax.cli import progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Bar("run 1 of 2: [/] x1", 4) as bar:
        bar.update(1, "[/bold] 3 tokens/s \x1b[2J")
        bar.phase("[red]run 2 of 2\x1b]0;x\x07")
    said = capsys.readouterr().err
    assert "[red]run 2 of 2\\x1b]0;x\\x07" in said


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EMFILE, errno.ENOSPC])
def test_limits_of_the_process_end_in_a_sentence(number, capsys):
    from s1jax.cli import command

    def main():
        raise OSError(number, os.strerror(number), "somewhere/samples.jsonl")

    assert command.guarded(main) == command.BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "samples.jsonl" in said


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n[more]", "launch.plan"),
        ("can't start new thread", "ulimit"),
    ],
)
def test_too_little_memory_ends_in_a_sentence(words, remedy, capsys):
    from s1jax.cli import command

    def main():
        raise RuntimeError(words)

    assert command.guarded(main) == command.BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and remedy in said


@pytest.mark.parametrize(("error", "code"), [("ValueError('a fault')", 1), ("UserError('bad input')", 2)])
def test_an_error_does_not_wait_for_threads(error, code):
    """A save of Orbax that could not start all of its threads left others that waited for ever."""
    launcher = (
        "import threading\nfrom s1jax.cli import command\nfrom s1jax.errors import UserError\n"
        "def main():\n    threading.Thread(target=threading.Event().wait).start()\n"
        f"    raise {error}\n"
        "command.run(main)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == code
    assert outcome.stderr.strip().endswith(("error: bad input", "ValueError: a fault"))
