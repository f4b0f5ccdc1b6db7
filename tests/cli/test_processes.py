"""`launch.train` in several processes that meet over loopback: in 2, 1 and 2 of them, one lost, one told to stop."""

import errno
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from jaxlib import xla_client

from s1jax.checkpoint import store
from s1jax.cli import command as command_lib
from s1jax.cli import processes
from s1jax.errors import UserError
from s1jax.plan import gpu_descriptions, targets
from tests.cli import forks

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = [
    "--config=configs/countdown_base.py", "--config.model.num_layers=1", "--config.model.d_model=16",
    "--config.model.mlp_dim=16", "--config.data.block_size=64", "--config.train.batch_size=4",
    "--config.optimizer.name=adamw", "--config.optimizer.learning_rate=1e-3", "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_fraction=0.0", "--config.train.steps=100000", "--config.checkpoint.every=5",
]  # fmt: skip
PATIENCE = 900  # seconds until a test gives up


def flags(index, count, port):
    return [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"], {}


def slurm(index, count, port):
    task = {"SLURM_NTASKS": count, "SLURM_PROCID": index, "SLURM_LOCALID": index}
    return [], {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "localhost", "JAX_COORDINATOR_PORT": port, **task}


def open_mpi(index, count, port):
    ranks = {"OMPI_COMM_WORLD_SIZE": count, "OMPI_COMM_WORLD_RANK": index, "OMPI_COMM_WORLD_LOCAL_RANK": index}
    return [], {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "JAX_COORDINATOR_PORT": port, **ranks}


def tpu_jobset(index, count, port):
    """Slices of one host each, as GKE tells the pods of a JobSet; jax is made to believe that there are TPU chips."""
    tpu = {
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": 0,
    }
    slices = {"MEGASCALE_NUM_SLICES": count, "MEGASCALE_SLICE_ID": index, "MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
    return [], {"JAX_COORDINATOR_PORT": port, **tpu, **slices}


_CHIP = """
import glob, pathlib

found = glob.glob
chip = pathlib.Path(__file__).parent / "0000:00:05.0" / "vendor"
glob.glob = lambda path, **kw: [str(chip)] if path == "/sys/bus/pci/devices/*/vendor" else found(path, **kw)
"""


def cloud_tpu(index, count, port):
    """Hosts of a Cloud TPU slice: each with a chip on its bus and a stand-in for the metadata server that jax asks."""
    says = {"agent-worker-number": str(index), "worker-network-endpoints": ",".join(["localhost"] * count)}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = says.get(self.path.rpartition("/")[2], "")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = pathlib.Path(tempfile.mkdtemp())
    chip = host / "0000:00:05.0"  # as Linux names places on the bus
    chip.mkdir()
    (chip / "vendor").write_text("0x1ae0")
    (chip / "device").write_text("0x0062")
    (host / "sitecustomize.py").write_text(_CHIP)
    path = f"{host}:{os.environ.get('PYTHONPATH', '')}"
    address = f"localhost:{server.server_port}"
    return [], {
        "JAX_FORCE_TPU_INIT": "1",  # as if libtpu were installed
        "PYTHONPATH": path,
        "GCE_METADATA_IP": address,
        "JAX_COORDINATOR_PORT": port,
    }


def _begin(arguments, environment, out, err):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    env.pop("TPU_SKIP_MDS_QUERY", None)  # jax has set it here: this machine has no TPU
    with out.open("w") as stdout, err.open("w") as stderr:
        command = [sys.executable, "-m", "launch.train", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=env | environment, stdout=stdout, stderr=stderr)


class Job:
    """Processes of one command; their output is in files."""

    def __init__(self, server, folder, cluster, count, *options, devices=1, apart=()):
        """Starts them; `apart` are further flags of the last process."""
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        self.folder, self.processes = folder, []
        for index in range(count):
            arguments, environment = cluster(index, count, port)
            last = apart if index == count - 1 else ()
            own = {name: str(value) for name, value in environment.items()}
            env = {"JAX_NUM_CPU_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "2"} | own
            files = [folder / f"{name}{index}" for name in ("out", "err")]
            words = [*RUN, *options, *arguments, *last]
            begin = _begin if "JAX_FORCE_TPU_INIT" in env else server.start  # jax reads that when it is imported
            self.processes.append(begin(words, env, *files))

    def out(self, index):
        """What a process printed, less what the collectives of CPUs print by themselves."""
        lines = (self.folder / f"out{index}").read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))

    def err(self, index):
        return (self.folder / f"err{index}").read_text()

    def until(self, condition):
        begun = time.monotonic()
        while not condition():
            assert all(process.poll() is None for process in self.processes), [self.err(0), self.err(1)]
            assert time.monotonic() - begun < PATIENCE
            time.sleep(0.1)

    def codes(self):
        return [process.wait(PATIENCE) for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    jobs = []
    imports = ("s1jax.cli.train", "s1jax.training.run", "s1jax.training.callbacks", "jax.experimental.multihost_utils")
    with forks.Forks("launch.train", *imports) as server:

        def start(*args, **kwargs):
            jobs.append(Job(server, tmp_path_factory.mktemp("job") / "job", *args, **kwargs))
            return jobs[-1]

        yield start
        for job in jobs:
            job.kill()


def records(workdir):
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def latest(workdir):
    return records(workdir)[-1]["step"] if records(workdir) else 0


@pytest.fixture(scope="module")
def story(start, tmp_path_factory):
    """One run in four parts, and what was seen at the end of each; its folder has a name that is a pattern, too."""
    workdir = tmp_path_factory.mktemp("story") / "lr[1e-4]"
    seen = {"workdir": workdir}

    job = start(slurm, 2, f"--workdir={workdir}")
    job.until(lambda: latest(workdir) >= 7 and store.finished_steps(workdir))
    job.processes[1].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    seen["lost"] = job, job.codes()[0], time.monotonic() - begun
    reached = latest(workdir)

    def stop(part, job, victim):
        job.until(lambda: latest(workdir) >= reached + 4)
        job.processes[victim].send_signal(signal.SIGTERM)
        seen[part] = job, job.codes(), latest(workdir), store.finished_steps(workdir)[-1]
        return latest(workdir)

    splash = "--config.train.attention=splash"
    reached = stop("again", start(cloud_tpu, 2, f"--workdir={workdir}", splash), 1)
    # A coordinator for one process alone, which has two devices.
    tensor = ("--config.mesh.fsdp=1", "--config.mesh.tensor=2")
    reached = stop("one", start(flags, 1, f"--workdir={workdir}", *tensor, devices=2), 0)
    sequence = ("--config.mesh.fsdp=1", "--config.mesh.sequence=2")
    reached = stop("two", start(open_mpi, 2, f"--workdir={workdir}", *sequence), 0)
    return seen


def test_a_lost_process_ends_the_others_with_a_sentence(story):
    job, code, seconds = story["lost"]
    assert code == 75, job.err(0)[-3000:]
    assert seconds < 60 and processes._SILENCE < 60  # of one whose connection stays open
    last = job.err(0).splitlines()[-1]
    assert last.startswith("error: ") and "another process was lost" in last and "run the same command again" in last
    assert "Traceback" not in job.err(0)


@pytest.mark.parametrize("part", ["again", "one", "two"])
def test_a_sigterm_to_one_process_stops_all_at_the_same_step(story, part):
    job, codes, step, saved = story[part]
    assert set(codes) == {143}, job.err(0)
    assert step == saved and f"stopped at step {step} " in job.out(0)
    # Process 0 says so at once where the signal is its own.
    assert job.err(0).count("SIGTERM: the run stops after the step under way") == (part != "again")


@pytest.mark.parametrize("part", ["again", "two"])
def test_only_the_first_process_speaks(story, part):
    job = story[part][0]
    assert "loading the checkpoint of step" in job.err(0) and "training" in job.err(0)
    assert job.out(1) == "" and job.err(1) == ""


def test_attention_that_is_not_to_be_had_is_told_once(story):
    job = story["again"][0]
    assert job.out(0).count("note: train.attention=splash runs on TPU only; chunked is used instead.") == 1


def test_moving_between_processes_is_the_run_in_one(story, start, tmp_path):
    """2 processes, lost, 2 processes, 1 process with 2 devices that share heads, 2 processes that share every row."""
    moved = records(story["workdir"])
    job = start(lambda *_: ([], {}), 1, f"--workdir={tmp_path}/w", "--config.checkpoint.every=0")
    job.until(lambda: latest(tmp_path / "w") >= moved[-1]["step"])
    job.kill()
    whole = records(tmp_path / "w")[: len(moved)]
    assert [line["step"] for line in moved] == [line["step"] for line in whole] == list(range(1, len(moved) + 1))
    np.testing.assert_allclose([r["loss"] for r in moved], [r["loss"] for r in whole], rtol=0, atol=1e-5)
    assert [line["tokens"] for line in moved] == [line["tokens"] for line in whole]
    assert np.ptp([line["loss"] for line in whole]) > 0.1, "losses that tell steps apart"


def test_an_error_of_one_process_is_said_once_and_ends_all(start, tmp_path):
    """The second process sees another folder, as on a machine that doesn't have the shared one."""
    job = start(tpu_jobset, 2, f"--workdir={tmp_path}/shared", apart=[f"--workdir={tmp_path}/own"])
    assert job.codes() == [2, 2], job.err(0)
    assert job.err(0).startswith(f"error: process 1: {tmp_path}/own/config.json, which process 0 has, is not there")
    assert len(job.err(0).splitlines()) == 1 and job.err(1) == ""
    assert not (tmp_path / "own").exists()


def test_one_folder_at_two_paths_is_said_before_the_first_step(start, tmp_path):
    """As for two users of one shared folder; Orbax refuses it at the first save."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    job = start(flags, 2, f"--workdir={tmp_path}/shared/w", apart=[f"--workdir={tmp_path}/link/w"])
    assert job.codes() == [2, 2], job.err(0)
    assert job.err(0).startswith(f"error: process 1: --workdir is {tmp_path}/link/w here and another path in process 0")
    assert len(job.err(0).splitlines()) == 1 and job.err(1) == ""
    assert not records(tmp_path / "shared/w")


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--num_processes=2"], {}, "are given together or not at all"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], {}, "--coordinator=here is not HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], {}, "--process_id=2 is none of the 2"),
        ([], {"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX is set, but .* needs the package kubernetes"),
    ],
)
def test_processes_that_are_not_told_how_to_meet(start, tmp_path, options, environment, message):
    job = start(lambda *_: (options, environment), 1, f"--workdir={tmp_path}/w")
    assert job.codes() == [2]
    assert job.err(0).startswith("error: ") and len(job.err(0).splitlines()) == 1
    assert re.search(message, job.err(0)), job.err(0)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("mend it."), 2, "error: mend it.\n"),
        (OSError(errno.ENOSPC, "full"), 2, "error: no space left on the device"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "error: a/b: permission denied; choose another"),
        (JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection reset"), 75, "error: another process was lost"),
        (TimeoutError("Timeout waiting at barrier: Task 1 heartbeat timeout."), 75, "error: another process was lost"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 2, "error: the memory of the device is not enough"),
        (TimeoutError("slow"), 1, "Traceback"),
        (KeyError("bug"), 1, "Traceback"),
    ],
)
def test_what_one_process_alone_says(capsys, error, code, said):
    assert processes._report(error) == code
    assert capsys.readouterr().err.startswith(said)


def test_what_jax_aborts_says_so():
    """A process whose peers don't come in time."""
    code = (
        "import functools, jax; from absl import app; from s1jax.cli import processes\n"
        "jax.distributed.initialize = functools.partial(jax.distributed.initialize, initialization_timeout=1)\n"
        "app.run(lambda _: processes.run(lambda: 0))"
    )
    with socket.socket() as nobody:  # bound and not listening
        nobody.bind(("", 0))
        arguments, _ = flags(1, 2, nobody.getsockname()[1])
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 75
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: jax ended this process") and "run the same command again" in last


def test_a_lost_peer_is_known_behind_the_error_of_a_save(capsys):
    try:
        try:
            raise JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: save::3")
        except JaxRuntimeError as error:
            raise ValueError("could not finish step 3") from error
    except ValueError as error:
        assert processes._report(error) == processes.LOST
    assert "another process was lost (could not finish step 3 DEADLINE_EXCEEDED" in capsys.readouterr().err
    assert processes._report(UserError("a Barrier of the user's own")) == command_lib.BAD_INPUT


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_a_process_gets_the_memory_that_plans_count_on(monkeypatch, name):
    def share():
        return xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"]

    # Set first, so that monkeypatch undoes what `guarded` sets.
    for variable in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    fraction = command_lib.guarded(share)
    for kind, text in gpu_descriptions.TEXT.items():
        card = int(re.search(r"device_memory_size: (\d+)", text)[1])
        assert targets.CHIPS[kind].memory <= fraction * card
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION")
    monkeypatch.setenv(name, "0.5")
    assert command_lib.guarded(share) == 0.5
