"""launch/gpu_vm.sh over a real ssh: two sshd on loopback, each with a home folder of its own.

Runs with S1JAX_SSH=1 in the environment. What is installed and run there is a stand-in for s1jax: a package that needs
one wheel, with a launch.train that ends with the exit codes that it is given.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import zipfile

import pytest

from tests.launch.stand_ins import LAUNCH

SBIN = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))
MISSING = [name for name in ("sshd", "ssh", "scp", "ssh-keygen", "git") if shutil.which(name, path=SBIN) is None]
pytestmark = [
    pytest.mark.skipif("S1JAX_SSH" not in os.environ, reason="takes a minute; S1JAX_SSH=1 runs it over a real ssh"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed (Debian: openssh-server)"),
]

# Every connection gets the home folder of its host. Commands and file transfers arrive as SSH_ORIGINAL_COMMAND.
SHELL = """#!/bin/bash
export HOME={home} PATH={home}/bin:/usr/bin:/bin
unset PYTHONPATH PYTHON UV_PYTHON
cd "$HOME"
case $SSH_ORIGINAL_COMMAND in
  *sftp-server*) exec $SSH_ORIGINAL_COMMAND ;;
  *) exec bash -c "$SSH_ORIGINAL_COMMAND" ;;
esac
"""
SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/key
PidFile none
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
ForceCommand {home}/bin/shell
Subsystem sftp {sftp}
"""
# Builds without any other package: a wheel that points to this folder and wants `tinydep` for the extra `tiny`.
BACKEND = """
import os, zipfile

def build_editable(folder, settings=None, metadata=None):
    info = "s1jax-0.dist-info"
    with zipfile.ZipFile(os.path.join(folder, "s1jax-0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("s1jax.pth", os.getcwd())
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: s1jax\\nVersion: 0\\n"
                       "Provides-Extra: all\\nProvides-Extra: tiny\\nRequires-Dist: tinydep; extra == 'tiny'\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "s1jax-0-py3-none-any.whl"
"""
# Ends with --codes=ATTEMPT,ATTEMPT,...: an attempt is a code for each process, with / between them.
TRAIN = """
import os, pathlib, signal, sys, tinydep

flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
attempts = pathlib.Path.home() / "attempts"
attempts.open("a").write("x")
code = flags["codes"].split(",")[len(attempts.read_text()) - 1].split("/")[int(flags["process_id"])]
print(f"process {flags['process_id']}: {flags['say']} {pathlib.Path('rows.jsonl').read_text()}", flush=True)
if code == "137":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""


class Hosts:
    """Two hosts, `one` and `two`, and a repository that they get."""

    def __init__(self, folder):
        self.folder, self.daemons, self.repository = folder, [], folder / "repository"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        config = (
            f"IdentityFile {folder}/key\nUserKnownHostsFile {folder}/known\nStrictHostKeyChecking no\nLogLevel ERROR\n"
        )
        sftp = next(
            p for p in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server") if os.path.exists(p)
        )
        if os.getuid() == 0:
            pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # which sshd of root wants to see
        for name in ("one", "two"):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            home = folder / name
            (home / "bin").mkdir(parents=True)
            (home / "bin/shell").write_text(SHELL.format(home=home))
            (home / "bin/shell").chmod(0o755)
            python = pathlib.Path(sys._base_executable).resolve()
            (home / "bin/python3").write_text(f'#!/bin/bash\nexec {python} "$@"\n')
            (home / "bin/python3").chmod(0o755)
            (home / "sshd").write_text(SSHD.format(port=port, folder=folder, home=home, sftp=sftp))
            log = (home / "log").open("w")
            command = [shutil.which("sshd", path=SBIN), "-D", "-e", "-f", home / "sshd"]
            self.daemons.append(subprocess.Popen(command, stderr=log))
            config += f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n"
            self.wait_for(port, home / "log")
        (folder / "config").write_text(config)
        path = folder / "bin"
        path.mkdir()
        for name in ("ssh", "scp"):
            (path / name).write_text(f'#!/bin/bash\nexec {shutil.which(name)} -F {folder}/config "$@"\n')
            (path / name).chmod(0o755)
        self.make_repository()

    def wait_for(self, port, log):
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def make_repository(self):
        (self.repository / "launch").mkdir(parents=True)
        for file in LAUNCH.iterdir():
            if file.suffix == ".sh" or file.name in ("inputs.py", "__init__.py"):
                shutil.copy(file, self.repository / "launch")
        files = {
            "s1jax/cli/train.py": TRAIN, "backend.py": BACKEND,
            ".gitignore": "build/\nruns/\n.venv/\nrows.jsonl\n__pycache__/\n",
            "setup.py": 'extras = {\n    "tiny": ["tinydep"],\n}\n',
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
            "configs/own.py": "import ml_collections\n\n\ndef get_config():\n    config = ml_collections.ConfigDict()\n"
            "    config.data = dict(source='rows.jsonl')\n    return config\n",
        }  # fmt: skip
        (self.repository / "configs").mkdir()
        for name, text in files.items():
            (self.repository / name).write_text(text)
        git = ["git", "-C", self.repository, "-c", "user.name=me", "-c", "user.email=me@localhost"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
            subprocess.run([*git, *command], check=True)
        wheels = self.folder / "wheels"
        wheels.mkdir()
        (wheels / "setuptools-0-py3-none-any.whl").touch()
        with zipfile.ZipFile(wheels / "tinydep-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tinydep.py", "")
            wheel.writestr("tinydep-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydep\nVersion: 1\n")
            wheel.writestr(
                "tinydep-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr("tinydep-1.dist-info/RECORD", "")

    def train(self, codes, *flags, say="hello", hosts="one,two", workdir="/storage/a b"):
        for name in ("one", "two"):
            (self.folder / name / "attempts").unlink(missing_ok=True)
        words = (f"--host={hosts}", "--extra=tiny", f"--wheelhouse={self.folder}/wheels", *flags)
        command = ["bash", "launch/gpu_vm.sh", *words, "--", "--config=configs/own.py", f"--workdir={workdir}"]
        environment = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "HOME": str(self.folder)}
        return subprocess.run(
            [*command, f"--codes={codes}", f"--say={say}"], cwd=self.repository, env=environment, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip

    def attempts(self):
        return len((self.folder / "one/attempts").read_text())


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    hosts = Hosts.__new__(Hosts)
    hosts.daemons = []
    try:
        hosts.__init__(tmp_path_factory.mktemp("ssh"))
        yield hosts
    finally:
        for name in ("one", "two"):
            worker = hosts.folder / name / "s1jax/launch/worker.sh"
            if worker.exists():
                subprocess.run(["bash", worker, "stop"], capture_output=True)
        for daemon in hosts.daemons:
            daemon.kill()
            daemon.wait()


def test_rows_that_are_nowhere_are_missed_before_the_installation(hosts):
    outcome = hosts.train("0/0")
    assert outcome.returncode == 2, outcome.stderr
    assert "error: config.data.source rows.jsonl is not on " in outcome.stderr
    assert not (hosts.folder / "one/s1jax/.venv").exists()


def test_hosts_with_folders_at_two_paths_need_an_absolute_workdir(hosts):
    outcome = hosts.train("0/0", workdir="runs/a")
    assert outcome.returncode == 2, outcome.stderr
    said = outcome.stderr.splitlines()[-1]
    assert said.startswith("error: one has this folder at ") and "give an absolute --workdir" in said
    assert not (hosts.folder / "one/s1jax/.venv").exists()


def test_two_hosts_install_from_wheels_get_the_rows_and_train(hosts):
    (hosts.repository / "rows.jsonl").write_text("first rows")
    outcome = hosts.train("0/0", say='it\'s a "b"')
    assert outcome.returncode == 0, outcome.stderr + outcome.stdout
    assert 'process 0: it\'s a "b" first rows' in outcome.stdout
    for name in ("one", "two"):
        assert list((hosts.folder / name / "s1jax/.venv").glob("lib/python*/site-packages/tinydep.py"))
    assert outcome.stderr.count("copying rows.jsonl") == 2
    outcome = hosts.train("0/0")
    assert outcome.returncode == 0 and "copying rows.jsonl" not in outcome.stderr
    (hosts.repository / "rows.jsonl").write_text("second rows")
    outcome = hosts.train("0/0")
    assert outcome.returncode == 0 and "second rows" in outcome.stdout


@pytest.mark.parametrize(("codes", "code", "attempts"), [("75/2", 2, 1), ("75/1", 1, 1), ("75/137,0/0", 0, 2)])
def test_the_output_of_the_host_that_failed_is_shown(hosts, codes, code, attempts):
    (hosts.repository / "rows.jsonl").write_text("rows")
    outcome = hosts.train(codes, say="cause")
    assert outcome.returncode == code, outcome.stderr
    assert hosts.attempts() == attempts
    assert "process 1: cause rows" in outcome.stderr and "process 0" not in outcome.stderr


def test_a_host_that_does_not_answer_is_named(hosts):
    script = hosts.repository / "launch/remote.sh"
    text = script.read_text()
    script.write_text(text.replace("sleep 15", "sleep 0"))  # between twenty tries
    try:
        outcome = hosts.train("0/0", hosts="one,nowhere.invalid")
    finally:
        script.write_text(text)
    assert outcome.returncode == 1 and "nowhere.invalid: exit code 255" in outcome.stderr
    assert "does not answer over ssh" in outcome.stderr
