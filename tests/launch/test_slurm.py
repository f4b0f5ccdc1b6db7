"""launch/slurm.sbatch under a real SLURM: a controller and two nodes on this machine.

Runs with S1JAX_SLURM=1 in the environment. Needs the packages slurm-wlm and munge. Everything is in a temporary folder,
on ports of its own, and is ended with the tests; it takes some minutes.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.cli.test_processes import RUN, latest, records
from tests.cli.test_shared_rows import plain
from tests.launch.stand_ins import LAUNCH, ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun")
SBIN = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"))
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
PATIENCE = 300  # seconds until a test gives up

pytestmark = [
    pytest.mark.skipif("S1JAX_SLURM" not in os.environ, reason="takes minutes; S1JAX_SLURM=1 runs it on a real SLURM"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed (Debian: slurm-wlm, munge)"),
]

# Names: the first node of a job is where jax's processes meet, so it has to be a name of this machine; slurm replaces
# `localhost` by it. One partition preempts the other. Credentials that expire in 5 s let a requeued job start after 6 s
# instead of 121.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1 State=UNKNOWN
NodeName={host}-b NodeAddr=127.0.0.2 Port={ports[2]} CPUs=1 Gres=gpu:1 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF State=UP
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def until(condition, cluster, patience=PATIENCE):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < patience, cluster.said()
        time.sleep(0.3)


class Cluster:
    """A controller, two nodes, and a repository from which jobs are submitted."""

    def __init__(self, folder):
        self.folder, self.daemons = folder, []
        host = socket.gethostname().split(".")[0]
        for name in ("munge", "state", f"spool-{host}", f"spool-{host}-b"):
            (folder / name).mkdir(mode=0o755, parents=True)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = CONFIG.format(host=host, ports=free_ports(3), folder=folder, user=user)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"NodeName={host},{host}-b Name=gpu File=/dev/null\n")
        (folder / "cgroup.conf").write_text("")
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_", "XLA_"))},
            "PATH": SBIN,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        munge = [
            f"--{name}={folder}/munge/{name.split('-')[0]}"
            for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ]
        self.daemon("munged", "--foreground", "--force", *munge)
        until((folder / "munge" / "socket").exists, self, 30)
        self.daemon("slurmctld", "-D")
        for node in (host, f"{host}-b"):
            self.daemon("slurmd", "-D", "-N", node)
        until(lambda: self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2, self, 60)
        self.repository = folder / "repository"
        shutil.copytree(LAUNCH, self.repository / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("s1jax", "configs", "setup.py"):
            (self.repository / name).symlink_to(ROOT / name)
        python = self.repository / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        stamp = subprocess.run(
            "cksum <setup.py | cut -d ' ' -f 1", shell=True, cwd=ROOT, capture_output=True, text=True
        )
        (self.repository / f".venv/s1jax-cuda-{stamp.stdout.strip()}").touch()

    def daemon(self, *command):
        log = (self.folder / f"{'-'.join(command).replace('/', '_')[:40]}.out").open("w")
        with log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def ask(self, *command):
        done = subprocess.run(
            command, env=self.environment, cwd=self.repository_or_here(), capture_output=True, text=True
        )
        return done.stdout + done.stderr

    def repository_or_here(self):
        there = self.folder / "repository"
        return there if there.exists() else self.folder

    def submit(self, workdir, *options):
        return self.submit_command(*RUN, f"--workdir={workdir}", *options)

    def submit_command(self, *arguments):
        small = ("--ntasks-per-node=1", "--gpus-per-node=1", "--time=30")
        answer = self.ask("sbatch", "--parsable", *small, "launch/slurm.sbatch", *arguments)
        assert answer.strip().isdigit(), answer
        return answer.strip()

    def job(self, number):
        """What the controller knows of a job: its state, restarts and exit code."""
        words = dict(w.partition("=")[::2] for w in self.ask("scontrol", "show", "job", number).split() if "=" in w)
        return words.get("JobState"), int(words.get("Restarts", "-1")), words.get("ExitCode")

    def log(self, number):
        file = self.repository / f"s1jax-{number}.log"
        return file.read_text() if file.exists() else ""

    def processes(self, folder, program="train", flag="workdir"):
        """The ids of a run's processes, which have the flag with this folder."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                of_run = f"launch.{program}".encode() in words and f"--{flag}={folder}".encode() in words
                if of_run and b"python" in words[0]:
                    found.append(int(entry.name))
        return sorted(found)

    def said(self):
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self.folder.glob("repository/s1jax-*.log")]
        return "\n".join(f"== {file.name}\n{file.read_text()[-2000:]}" for file in logs)

    def end(self):
        self.ask("scancel", "--user", str(os.getuid()))
        for _ in range(100):  # daemons that end first would leave the steps of cancelled jobs running
            if not self.ask("squeue", "--noheader"):
                break
            time.sleep(0.3)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster.__new__(Cluster)
    cluster.daemons = []
    try:
        cluster.__init__(tmp_path_factory.mktemp("slurm"))
        yield cluster
    finally:
        if cluster.daemons:
            cluster.end()


def test_a_job_survives_kills_limits_and_preemption_with_the_loss_of_one_process(cluster, tmp_path):
    workdir = tmp_path / "w"
    job = cluster.submit(workdir)

    def trains(more=3):
        reached = latest(workdir)
        # After a requeue the processes of before may take some more steps while the job is COMPLETING.
        until(lambda: cluster.job(job)[0] in ("RUNNING", "FAILED") and latest(workdir) >= reached + more, cluster)
        assert cluster.job(job)[0] == "RUNNING", cluster.said()

    def requeued(restarts):
        until(lambda: cluster.job(job)[1] == restarts or cluster.job(job)[0] == "FAILED", cluster)
        assert cluster.job(job)[1] == restarts, cluster.said()

    trains()
    assert len(cluster.processes(workdir)) == 2
    os.kill(cluster.processes(workdir)[1], signal.SIGKILL)
    requeued(1)
    assert "note: a process was lost (process " in cluster.log(job) and "exit code 137); job" in cluster.log(job)

    trains()  # what SLURM does at the time limit, by --signal=B:USR1
    cluster.ask("scancel", "--signal=USR1", "--batch", job)
    requeued(2)
    assert "note: the time limit is near; job" in cluster.log(job)
    assert f"stopped at step {latest(workdir)} " in cluster.log(job)

    trains()
    other = cluster.ask("sbatch", "--parsable", "--partition=high", "--nodes=2", "--wrap=true").strip()
    until(lambda: cluster.job(other)[0] == "COMPLETED", cluster)
    requeued(3)

    trains()
    cluster.ask("scontrol", "requeue", job)
    requeued(4)

    trains()
    cluster.ask("scancel", job)
    until(lambda: cluster.processes(workdir) == [], cluster)
    until(lambda: cluster.job(job)[0] == "CANCELLED", cluster)
    assert cluster.job(job)[1] == 4, "a job that was cancelled is not requeued"

    moved = records(workdir)
    command = [sys.executable, "-m", "launch.train", *RUN, f"--workdir={tmp_path}/one"]
    steps = ["--config.checkpoint.every=0", f"--config.train.steps={moved[-1]['step']}"]
    subprocess.run([*command, *steps], cwd=ROOT, env=cluster.environment, check=True, capture_output=True)
    whole = records(tmp_path / "one")
    assert [line["step"] for line in moved] == [line["step"] for line in whole] == list(range(1, len(moved) + 1))
    np.testing.assert_allclose([r["loss"] for r in moved], [r["loss"] for r in whole], rtol=0, atol=1e-5)
    assert np.ptp([line["loss"] for line in whole]) > 0.1, "losses that tell steps apart"


def test_bad_input_ends_the_job(cluster, tmp_path):
    job = cluster.submit(tmp_path / "w", "--config.train.accumulation=3")
    until(lambda: cluster.job(job)[0] == "FAILED", cluster)
    assert cluster.job(job)[1:] == (0, "2:0")
    assert re.search("error: process [01] on ", cluster.log(job)) and "The job is not requeued." in cluster.log(job)
    assert "train.accumulation" in cluster.log(job)
    job = cluster.submit(tmp_path / "w", "--config.data.source=none.jsonl")
    until(lambda: cluster.job(job)[0] == "FAILED", cluster)
    assert cluster.job(job)[1:] == (0, "2:0")
    assert (
        cluster.log(job) == "error: config.data.source none.jsonl does not exist here; give a file or folder of rows.\n"
    )


def test_a_job_is_requeued_a_bounded_number_of_times(cluster, tmp_path):
    cluster.environment["S1JAX_MAX_RESTARTS"] = "0"
    job = cluster.submit(tmp_path / "w")
    del cluster.environment["S1JAX_MAX_RESTARTS"]
    until(lambda: latest(tmp_path / "w") >= 2, cluster)
    os.kill(cluster.processes(tmp_path / "w")[0], signal.SIGKILL)
    until(lambda: cluster.job(job)[0] == "FAILED", cluster)
    assert cluster.job(job)[1] == 0 and "has had 0 of at most 0 restarts" in cluster.log(job)


@pytest.mark.parametrize(
    ("program", "flags", "journal"),
    [
        ("sample", ["--prompts={folder}/rows.jsonl", "--out={out}", "--temperature=1"], "{out}.partial"),
        ("evaluate", ["--task=countdown", "--num_problems=40", "--out={out}", "--budgets=64,none"],
         "{out}/samples.journal"),
    ],
)  # fmt: skip
def test_nodes_share_rows_and_one_may_be_lost(cluster, tmp_path, program, flags, journal):
    rows = [json.dumps({"question": f"Make {i} from 2 3 {i % 7 + 1}"}) for i in range(10, 50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    base = ["--checkpoint=package:countdown_base", "--max_answer_tokens=24", "--max_thinking_tokens=384"]

    def command(out):
        return [program, *base, "--batch_size=2", *(flag.format(folder=tmp_path, out=out) for flag in flags)]

    job = cluster.submit_command(*command(tmp_path / "two"))
    first = pathlib.Path(journal.format(out=tmp_path / "two"))
    journals = first, first.with_name(f"{first.name}-1")
    until(lambda: all(file.exists() and file.stat().st_size for file in journals), cluster)
    os.kill(cluster.processes(tmp_path / "two", program, "out")[1], signal.SIGKILL)
    until(lambda: cluster.job(job)[1] == 1 or cluster.job(job)[0] == "FAILED", cluster)
    assert "exit code 137); job" in cluster.log(job) and "goes on from what is on the disk" in cluster.log(job)
    until(lambda: cluster.job(job)[0] in ("COMPLETED", "FAILED"), cluster)
    assert cluster.job(job) == ("COMPLETED", 1, "0:0"), cluster.said()

    name, *given = command(tmp_path / "one")
    alone = [sys.executable, "-m", f"launch.{name}", *given]
    subprocess.run(alone, cwd=ROOT, env=cluster.environment, check=True, capture_output=True)

    def samples(out):
        lines = (out if out.is_file() else out / "samples.jsonl").read_text().splitlines()
        return [plain(json.loads(line)) for line in lines]

    assert samples(tmp_path / "two") == samples(tmp_path / "one")
    assert not any(file.exists() for file in journals)
