"""`s1jax check`: its table, its file and its exit codes."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The checks are stand-ins; their figures are checked in tests/check.
CODE = """
import sys, time
from s1jax.cli import check, command
from s1jax.check.report import Check, Figure, Outcome

def outcome():
    time.sleep(SECONDS)
    return Outcome({"error": Figure(0.5, "%")}, PASSED, "the limit is 1 %")

checks = [Check("kernels", "flash", outcome), Check("kernels", "splash", lambda: 1 / 0)]
check._checks = lambda parts: checks[:COUNT]
command.run(check.main)
"""


def run(folder, *flags, passed=True, seconds=0, count=1):
    code = f"PASSED, SECONDS, COUNT = {passed}, {seconds}, {count}\n{CODE}"
    return subprocess.run(
        [sys.executable, "-c", code, "--parts=kernels", *flags],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_table_and_the_file_have_the_figures(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 x cpu" in done.stdout and "jax 0." in done.stdout and "error 0.5 %" in done.stdout
    assert done.stdout.endswith("nothing failed; wrote check.json\n")
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["passed"] and found["machine"]["devices"] == [{"kind": "cpu", "memory_bytes": None}]
    assert {"python", "jax", "s1jax"} <= set(found["versions"])
    (check,) = found["checks"]
    assert check["figures"] == {"error": {"value": 0.5, "unit": "%"}} and check["status"] == "pass"


def test_a_failed_check_is_named_and_ends_with_1(tmp_path):
    done = run(tmp_path, "--out=a.json", passed=False, count=2)
    assert done.returncode == 1 and done.stdout.endswith("kernels flash; kernels splash failed; wrote a.json\n")
    found = json.loads((tmp_path / "a.json").read_text())
    assert not found["passed"] and [check["status"] for check in found["checks"]] == ["fail", "fail"]
    assert found["checks"][1]["note"] == "ZeroDivisionError: division by zero"


def test_a_check_that_hangs_ends_when_the_time_is_up(tmp_path):
    done = run(tmp_path, "--minutes=0.1", seconds=60)
    assert done.returncode == 1 and "not done within 0.1 minutes" in done.stdout, done.stderr
    found = json.loads((tmp_path / "check.json").read_text())
    assert [(check["name"], check["status"]) for check in found["checks"]] == [("flash", "fail")]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--parts=kernel", "--parts=kernel is not a list of transformers, kernels, tokens,"),
        ("--out=none/check.json", "--out=none/check.json is not a file in a folder that exists"),
        ("--minutes=0", "--minutes=0"),
    ],
)
def test_bad_flags_are_one_sentence(tmp_path, flag, words):
    done = run(tmp_path, flag)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
