"""Commands in forks of a process that has imported what they need, which is most of the time of a short one."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SERVER = """
import importlib, json, os, runpy, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    module, arguments, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate((os.devnull, out, err)):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.argv[1:] = arguments
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended; the fields have the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """Runs a module as `python -m` does, in the root of the checkout, again and again; a context manager."""

    def __init__(self, module: str, *imports: str) -> None:
        """`imports` are loaded before the first fork; they must not start threads, and no device."""
        self._module, self._folder = module, tempfile.TemporaryDirectory()
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _SERVER, *imports]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._server = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)

    def run(self, *arguments: object) -> Done:
        """Runs the module with such arguments, which may be bytes, and waits for its end."""
        out, err = (pathlib.Path(self._folder.name, name) for name in ("out", "err"))
        out.write_text("")
        err.write_text("")
        words = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in arguments]
        print(json.dumps([self._module, words, str(out), str(err)]), file=self._server.stdin, flush=True)
        return Done(int(self._server.stdout.readline()), out.read_text(), err.read_text())

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self._folder.cleanup()
