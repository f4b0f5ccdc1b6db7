"""The scripts for machines over ssh: what they ask gcloud and ssh for, and what a worker does."""

import shlex
import time

import pytest

from tests.system.stand_ins import TOOLS, Place

TPU = ("--name=s1", "--zone=us-east5-a", "--type=v5p-32", "--spot", "--mount=sudo mount 10.0.0.2:/share runs")
TRAIN = ("--config=configs/countdown_s1.py", "--workdir=runs/a b")


def steps(lines):
    """What the lines do, in order, without the waiting and asking."""
    names = {
        "archive": "git archive", "create": " create ", "restart": " instances start ", "copy": "scp ",
        "unpack": "tar -xzf", "install": "worker.sh install", "start": "worker.sh start", "follow": "worker.sh follow",
        "logs": "run.log", "delete": " delete ",
    }  # fmt: skip
    found = [name for line in lines for name, words in names.items() if words in f"{line} "]
    return " ".join(found)


SETUP = "copy unpack install start follow"


def test_dry_run_of_a_slice_prints_every_command_and_runs_none(tmp_path):
    place = Place(tmp_path)
    outcome, log = place.run("tpu_vm.sh", *TPU, "--project=mine", "--dry_run", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert log == [] and not (place.folder / "build").exists()
    printed, _, after = outcome.stdout.partition("# after a preemption")
    lines = [line for line in printed.splitlines() if line]
    assert steps(lines) == f"archive create {SETUP}"
    assert steps(after.splitlines()) == "delete"
    words = [shlex.split(line) for line in lines]
    assert all({"--zone=us-east5-a", "--project=mine"} <= set(line) for line in words if line[0] == "gcloud")
    (create,) = [line for line in words if "create" in line]
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "s1"]
    assert {"--node-id=s1", "--accelerator-type=v5p-32", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= set(create)
    (install,) = [line for line in words if "worker.sh install" in " ".join(line)]
    (start,) = [line for line in words if "worker.sh start" in " ".join(line)]
    assert "--worker=all" in install and "--worker=all" in start
    assert on_machine(install) == ["bash", "s1jax/launch/worker.sh", "install", "tpu", TPU[-1].removeprefix("--mount=")]
    assert on_machine(start) == ["bash", "s1jax/launch/worker.sh", "start", *TRAIN]
    assert [line[-1] for line in words if "follow" in " ".join(line)] and "--worker=0" in words[-1]

    (place.path / "gcloud").unlink()
    assert place.run("tpu_vm.sh", *TPU, "--project=mine", "--dry_run", "--", *TRAIN)[0].stdout == outcome.stdout


def on_machine(words):
    """The words that the shell on the machine reads."""
    (line,) = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    return shlex.split(line)


def test_the_first_run_creates_installs_starts_and_ends_with_0(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["", "WAITING_FOR_RESOURCES", "ACTIVE"], machines=["", "", "CREATING", "READY"])
    place.answer(states=["none", "0"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == f"archive create {SETUP}"
    assert log.index("sleep 30") < next(i for i, line in enumerate(log) if "scp" in line)


def test_a_preempted_slice_is_made_again_and_the_same_command_runs_on_it(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "", "ACTIVE"])
    place.answer(
        machines=["READY", "READY", "PREEMPTED", "PREEMPTED", "", "READY"], states=["none", "unheard", "none", "0"]
    )
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == f"archive {SETUP} delete create {SETUP}"  # and the first time it was there and was reused
    starts = [line for line in log if "worker.sh start" in line]
    assert starts[0] == starts[1]
    assert "s1 was preempted" in outcome.stderr


COSTS = "== s1 is still there and still costs money; this deletes it:\ngcloud compute "


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_a_run_that_ends_by_itself_is_not_tried_again_and_its_slice_is_named(tmp_path, code):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["none", code])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == code
    assert steps(log) == f"archive {SETUP}" + (
        " logs" if code in (1, 143) else ""
    )  # bad input is said by the first worker
    delete = "tpus queued-resources delete s1 --force --zone=us-east5-a --quiet\n"
    assert outcome.stderr.endswith(COSTS + delete) and " delete " not in "".join(log)


def test_a_lost_worker_is_tried_again_but_not_for_ever(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["none", "75"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 75 and steps(log).count("start") == 5


def test_a_broken_connection_leaves_the_run_alone(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["running", "running", "running", "0"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == "archive follow follow"
    assert "worker.sh stop" in outcome.stderr  # how to end it


def test_an_installation_that_fails_is_not_followed_by_a_run(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["none"], starts=["!7"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 1 and steps(log) == "archive copy unpack install start"
    assert COSTS in outcome.stderr


def test_a_slice_that_cannot_be_had_ends_the_script(tmp_path):
    place = Place(tmp_path)
    place.answer(changes=["!1"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 1 and "could not be created" in outcome.stderr and steps(log) == "archive create"
    assert "costs money" not in outcome.stderr
    place.answer(requests=["FAILED"])
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 2 and "has failed" in outcome.stderr and steps(log) == "archive"
    place.answer(requests=["!1"])  # not knowing is not the same as there being none
    outcome, log = place.run("tpu_vm.sh", *TPU, "--", *TRAIN)
    assert outcome.returncode == 1 and steps(log) == "archive"


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("tpu_vm.sh", ["--name=s1", "--zon=z"], "--zon=z is no flag"),
        ("tpu_vm.sh", ["--spot=yes", *TPU], "--spot=yes is no flag"),
        ("tpu_vm.sh", ["--name", *TPU], "--name is no flag"),
        ("tpu_vm.sh", ["s1"], "s1 is no flag"),
        ("tpu_vm.sh", ["--name=", *TPU[1:]], "--name has no value"),
        ("tpu_vm.sh", ["--name=s1", "--zone=z"], "--type= is missing"),
        ("tpu_vm.sh", [*TPU[:4], "--", *TRAIN], "--spot needs --mount"),
        ("tpu_vm.sh", [*TPU[:3], "--", *TRAIN], "--type=v5p-32 has several hosts and needs --mount"),
        ("tpu_vm.sh", [*TPU[:2], "--type=v6e-16", "--", *TRAIN], "--type=v6e-16 has several hosts"),
        ("tpu_vm.sh", ["--name=s1", "--zone=z", "--type=v9-8", "--", *TRAIN], "--type=v9-8 has no runtime"),
        ("tpu_vm.sh", TPU, "--workdir=FOLDER is missing"),
        ("tpu_vm.sh", [*TPU, "--", TRAIN[0]], "--workdir=FOLDER is missing"),
        ("tpu_vm.sh", [*TPU, "--", TRAIN[0], "--workdir=gs://bucket/x"], "is a URL"),
        ("tpu_vm.sh", [*TPU, "--", TRAIN[0], "--workdir=elsewhere"], "is not in runs/"),
        ("tpu_vm.sh", [*TPU, "--", "--config=configs/none.py", TRAIN[1]], "is no file"),
        ("tpu_vm.sh", [*TPU, "--", *TRAIN, "--dry_run"], "put it before the --"),
        ("gpu_vm.sh", ["--name=s1", "--", *TRAIN], "--zone= is missing"),
        ("gpu_vm.sh", ["--host=a", "--name=s1", "--", *TRAIN], "leave out what describes a VM"),
        ("gpu_vm.sh", ["--name=s1", "--zone=z", "--coordinator=a:1", "--", *TRAIN], "--coordinator belongs to --host"),
        ("worker.sh", ["begin"], "'begin' is nothing"),
        ("slurm.sbatch", TRAIN, "this is no SLURM job"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_sentence(tmp_path, script, arguments, words):
    outcome, log = Place(tmp_path).run(script, *arguments)
    assert outcome.returncode == 2 and log == []
    assert outcome.stderr.startswith("error: ") and words in outcome.stderr and outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["v4-8", "v5p-8", "v5litepod-8", "v6e-8"])
def test_a_slice_of_one_host_needs_no_mount(tmp_path, kind):
    outcome, _ = Place(tmp_path).run("tpu_vm.sh", *TPU[:2], f"--type={kind}", "--dry_run", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr


def test_a_config_that_the_machine_would_lack_is_refused(tmp_path):
    place = Place(tmp_path)
    place.answer(committed=["!128"])
    new = place.folder / "configs/new.py"
    new.touch()
    for config in ("configs/new.py", str(new)):
        outcome, log = place.run("tpu_vm.sh", *TPU, "--", f"--config={config}", TRAIN[1])
        assert outcome.returncode == 2 and log == [f"git cat-file -e HEAD:{config}"]
        assert outcome.stderr.startswith(f"error: --config={config} is not in the last commit")
        assert outcome.stderr.count("\n") == 1


def test_files_that_stay_here_are_told(tmp_path):
    place = Place(tmp_path)
    place.answer(requests=["ACTIVE"], machines=["READY"], states=["0"], uncommitted=["?? configs/own.py"])
    assert "not committed stay here" in place.run("tpu_vm.sh", *TPU, "--", *TRAIN)[0].stderr
    place.answer(uncommitted=[""])
    assert "not committed" not in place.run("tpu_vm.sh", *TPU, "--", *TRAIN)[0].stderr


def test_a_stopped_vm_is_started_again_with_its_disk(tmp_path):
    place = Place(tmp_path)
    place.answer(
        machines=["", "RUNNING", "STOPPING", "TERMINATED", "STAGING", "RUNNING"], states=["none", "143", "143", "0"]
    )
    flags = ("--name=s1", "--zone=z", "--type=a3-highgpu-1g", "--spot")
    outcome, log = place.run("gpu_vm.sh", *flags, "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert steps(log) == f"archive create {SETUP} restart {SETUP}"
    create = next(line for line in log if " create " in line)
    assert "--machine-type=a3-highgpu-1g" in create and "--provisioning-model=SPOT" in create
    assert "worker.sh install cuda" in " ".join(log) and "--coordinator" not in " ".join(log)
    assert outcome.stderr.endswith(COSTS + "instances delete s1 --zone=z --quiet\n")


def test_hosts_get_the_addresses_of_each_other(tmp_path):
    place = Place(tmp_path)
    place.answer(states=["none", "0"])
    outcome, log = place.run("gpu_vm.sh", "--host=me@10.0.0.5,me@10.0.0.6", "--", *TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    assert not any(line.startswith("gcloud") for line in log)
    assert "costs money" not in outcome.stderr  # nothing was made here
    starts = [line for line in log if "worker.sh start" in line]
    for index, line in enumerate(starts):
        assert f"me@10.0.0.{5 + index} bash s1jax" in line
        assert line.endswith(f"--coordinator=10.0.0.5:8476 --num_processes=2 --process_id={index}")
    assert len(starts) == 2 and sum("scp" in line for line in log) == 2 and sum("install" in line for line in log) == 2
    outcome, _ = place.run("gpu_vm.sh", "--host=a,b", "--coordinator=10.0.0.9:1", "--dry_run", "--", *TRAIN)
    assert outcome.stdout.count("--coordinator=10.0.0.9:1") == 2


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
    wait_for(lambda: state() == "3")
    assert worker.run("worker.sh", "follow")[0].stdout == "-m launch.train --workdir=a b --x=code=3\n"
    assert worker.run("worker.sh", "start", "first")[0].returncode == 0
    wait_for(lambda: "first" in log.read_text())
    assert state() == "running"
    worker.run("worker.sh", "start", "second")  # first ends the one that is left over
    wait_for(lambda: "second" in log.read_text())
    assert state() == "running" and "saved" not in log.read_text()
    assert worker.run("worker.sh", "stop")[0].returncode == 0
    assert state() == "143" and log.read_text().endswith("saved\n")


def test_a_machine_that_started_anew_has_no_run(worker):
    worker.run("worker.sh", "start", "first")
    pid = worker.folder / "build/run.pid"
    was = pid.read_text()
    pid.write_text("another-boot " + was.split()[1])
    assert worker.run("worker.sh", "state")[0].stdout == "none\n"
    pid.write_text(was)
