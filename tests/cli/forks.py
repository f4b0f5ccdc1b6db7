"""Commands in forks of a process that has imported what they need, which is most of the time of a short one."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SERVER = """
import importlib, json, os, runpy, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        found, status = os.waitpid(asked, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if found else None), flush=True)
        continue
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
else:
    sys.exit()
module, arguments, environment, out, err = asked
for number, path in enumerate((os.devnull, out, err)):
    os.dup2(os.open(path, os.O_RDWR), number)
os.environ.update(environment)
if "JAX_NUM_CPU_DEVICES" in environment:  # read when jax is imported, which it is
    import jax

    jax.config.update("jax_num_cpu_devices", int(environment["JAX_NUM_CPU_DEVICES"]))
sys.argv[1:] = arguments
if module.endswith(".py"):
    sys.argv[0] = module
    runpy.run_path(module, run_name="__main__")
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended; the fields have the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


class Fork:
    """A command under way; the methods are those of `subprocess.Popen`."""

    def __init__(self, ask: Callable[[object], object], request: list) -> None:
        """`ask` sends a request to the process that forks and returns the answer."""
        self._ask, self.pid, self._code = ask, ask(request), None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = self._ask(self.pid)
        return self._code

    def wait(self, timeout: float = 900) -> int:
        """Waits for the end, at most `timeout` seconds, and returns the exit code."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return self._code

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """Runs a module as `python -m` does, in the root of the checkout, again and again; a context manager."""

    def __init__(self, module: str, *imports: str, env: dict[str, str] | None = None) -> None:
        """`imports` are loaded before the first fork; they must not start threads, and no device.

        `module` may be a path that ends in `.py`; `env` is added to the environment.
        """
        self._module, self._folder = module, tempfile.TemporaryDirectory()
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | (env or {})
        command = [sys.executable, "-c", _SERVER, *imports]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._server = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[object], env: dict[str, str], out: pathlib.Path, err: pathlib.Path) -> Fork:
        """Starts the module with such arguments, which may be bytes; what it prints goes to the files."""
        out.write_text("")
        err.write_text("")
        words = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in arguments]
        return Fork(self._ask, [self._module, words, env, str(out), str(err)])

    def run(self, *arguments: object) -> Done:
        """Runs the module with such arguments and waits for its end."""
        out, err = (pathlib.Path(self._folder.name, name) for name in ("out", "err"))
        return Done(self.start(arguments, {}, out, err).wait(), out.read_text(), err.read_text())

    def _ask(self, request: object) -> object:
        with self._lock:
            print(json.dumps(request), file=self._server.stdin, flush=True)
            return json.loads(self._server.stdout.readline())

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self._folder.cleanup()
