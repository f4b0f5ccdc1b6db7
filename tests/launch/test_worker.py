"""launch/worker.sh: what a machine that trains is asked over ssh."""

import shutil
import time

import pytest

from tests.launch.stand_ins import LAUNCH, TOOLS, Place

WORKER_PYTHON = """#!/bin/bash
echo "$*"
trap 'echo saved; exit 143' TERM
all=$*
[[ $all != *code=* ]] || exit "${all##*code=}"
while true; do read -rt 0.1 <> <(:); done
"""


@pytest.fixture
def worker(tmp_path):
    place = Place(tmp_path, commands=(), tools=(*TOOLS, "sleep"))
    place.program(place.folder / ".venv/bin/python", WORKER_PYTHON)
    yield place
    place.run("worker.sh", "stop")


def wait_for(condition):
    deadline = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_keeps_the_run_its_output_and_its_exit_code(worker):
    def state():
        return worker.run("worker.sh", "state")[0].stdout.strip()

    log = worker.folder / "build/run.log"
    assert state() == "none"
    assert worker.run("worker.sh", "start", "--workdir=a b", "--x=code=3")[0].returncode == 0
    wait_for(lambda: state().split()[0] == "3")
    ended = state()
    assert abs(int(ended.split()[1]) / 1e6 - time.time()) < 3600
    shown = worker.run("worker.sh", "report", *ended.split())[0].stdout
    assert ": exit code 3;" in shown and shown.endswith("--x=code=3\n")
    assert worker.run("worker.sh", "report", "3", "1")[0].stdout == ""  # of another machine
    assert worker.run("worker.sh", "follow")[0].stdout == "-m launch.train --workdir=a b --x=code=3\n"
    assert worker.run("worker.sh", "start", "first")[0].returncode == 0
    wait_for(lambda: "first" in log.read_text())
    assert state() == "running"
    worker.run("worker.sh", "start", "second")  # first ends the one that is left over
    wait_for(lambda: "second" in log.read_text())
    assert state() == "running" and "saved" not in log.read_text()
    assert worker.run("worker.sh", "stop")[0].returncode == 0
    assert state().startswith("143 ") and log.read_text().endswith("saved\n")


def test_a_copy_is_made_once_and_again_where_it_changed(worker):
    def ask(*words):
        outcome, _ = worker.run("worker.sh", *words)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout.strip()

    incoming = worker.folder / "build/incoming/.s1jax-copy"
    assert ask("expect", "runs/a b/rows", "1") == "absent"
    incoming.write_text("one")
    assert ask("expect", "runs/a b/rows", "1") == "absent" and not incoming.exists()  # half of one
    incoming.write_text("one")
    ask("receive", "runs/a b/rows", "1")
    rows = worker.folder / "runs/a b/rows"
    assert rows.read_text() == "one" and not incoming.exists()
    assert ask("expect", "runs/a b/rows", "1") == "there"
    assert ask("expect", "runs/a b/rows", "2") == "absent" and rows.read_text() == "one"
    incoming.mkdir()
    (incoming / "part").write_text("two")
    ask("receive", "runs/a b/rows", "2")
    assert (rows / "part").read_text() == "two"
    (worker.folder / "rows.jsonl").write_text("own")
    assert ask("expect", "rows.jsonl", "1") == "other"
    ask("need", "config.data.source", "rows.jsonl")
    outcome, _ = worker.run("worker.sh", "need", "config.init_from", "runs/none")
    assert outcome.returncode == 2 and outcome.stderr.count("\n") == 1
    assert (
        outcome.stderr.startswith("error: config.init_from runs/none is not on ")
        and str(worker.folder) in outcome.stderr
    )


HOST_PYTHON = """#!/bin/bash
[[ $* != *version_info* ]] || exit NEW
[[ $* != *ensurepip* ]] || exit VENV
[[ $1 == -c ]] && exit 0
[[ $1 == --version ]] && echo "stand-in" && exit 0
echo "${0##*/} $*" >>LOG
if [[ $* == *" venv "* ]]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
"""
UV = """#!/bin/bash
[[ $1 != --version ]] || exit 0
echo "uv $*" >>LOG
[[ $* != "python install"* ]] || exit INSTALL
[[ $* != "python find"* ]] || echo found-python
if [[ $1 == venv ]]; then mkdir -p .venv/bin && cp "$(command -v true)" .venv/bin/python; fi
"""


def host(folder, new=0, venv=0, python=True, curl="exit 6"):
    tools = (*TOOLS, "chmod", "sha256sum", "true", "uname", "unzip")
    place = Place(folder, commands=(), tools=[tool for tool in tools if shutil.which(tool)])
    if python:
        place.program(place.path / "python3", HOST_PYTHON.replace("NEW", str(new)).replace("VENV", str(venv)))
    place.program(place.path / "curl", f'#!/bin/bash\necho "curl $*" >>LOG; {curl}\n')
    return place


def install(place, *words):
    return place.run("worker.sh", "install", *words, HOME=str(place.folder))


def test_a_host_installs_with_its_own_python_and_from_wheels(tmp_path):
    place = host(tmp_path)
    outcome, log = install(place, "none", "build/wheels")
    assert outcome.returncode == 0, outcome.stderr
    assert log == ["python3 -m venv .venv", "python -m pip install --quiet --disable-pip-version-check --no-index "
                   "--find-links=build/wheels -e .[all]"]  # fmt: skip


@pytest.mark.parametrize("own", [{"python": False}, {"new": 1}, {"venv": 1}])
def test_uv_comes_only_to_hosts_without_a_python_and_as_it_is_known(tmp_path, own):
    place = host(tmp_path, **own)
    outcome, log = install(place, "cuda")
    assert outcome.returncode == 2 and len(log) == 1 and log[0].startswith("curl ")
    url = log[0].split()[-1]
    assert url.startswith("https://files.pythonhosted.org/packages/") and "/uv-" in url and url.endswith(".whl")
    assert (
        "uv could not be downloaded from files.pythonhosted.org" in outcome.stderr and outcome.stderr.count("\n") == 1
    )
    place.program(place.path / "curl", '#!/bin/bash\nwhile [[ $1 != --output ]]; do shift; done; echo other >"$2"\n')
    outcome, log = install(place, "cuda")
    assert outcome.returncode == 2 and log == [] and "has not the SHA-256 that is known for it" in outcome.stderr
    outcome, log = install(place, "cuda", "build/wheels")
    assert outcome.returncode == 2 and log == [] and "with --wheelhouse nothing is downloaded" in outcome.stderr


def test_an_error_of_uv_is_shown_with_what_to_do(tmp_path):
    place = host(tmp_path, python=False)
    place.program(place.path / "uv", UV.replace("exit INSTALL", "echo 'no route to github.com' >&2; exit 1"))
    outcome, log = install(place, "cuda")
    assert outcome.returncode == 2 and log == ["uv python install 3.12"]
    assert "no route to github.com\n" in outcome.stderr and "install one with its venv module there" in outcome.stderr


def test_nothing_of_the_recipes_runs_what_it_has_just_downloaded():
    for file in LAUNCH.iterdir():
        if file.suffix in (".sh", ".sbatch", ".yaml"):
            lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
            assert not [line for line in lines if "curl" in line and "|" in line.replace("||", "")], file.name
            assert not any("install.sh" in line for line in lines), file.name


def test_a_machine_that_started_anew_has_no_run(worker):
    worker.run("worker.sh", "start", "first")
    pid = worker.folder / "build/run.pid"
    was = pid.read_text()
    pid.write_text("another-boot " + was.split()[1])
    assert worker.run("worker.sh", "state")[0].stdout == "none\n"
    pid.write_text(was)


def test_a_stand_in_takes_the_place_of_a_link_and_not_of_its_target(tmp_path):
    place = Place(tmp_path, commands=())
    real = tmp_path / "real"
    real.write_text("real")
    (place.path / "tool").symlink_to(real)
    place.program(place.path / "tool", "stand-in")
    assert real.read_text() == "real" and (place.path / "tool").read_text() == "stand-in"
