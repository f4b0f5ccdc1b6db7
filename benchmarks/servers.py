"""Server processes that `benchmarks.serving` measures: our own, `transformers serve`, and llama.cpp's by xllamacpp.

All listen on the loopback address, run alone, and have the slots and the context that they are given.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

_START_SECONDS = 300
# llama.cpp divides n_ctx evenly among its slots, unless they share one KV cache (kv_unified), as they do here.
_LLAMA = """
import os, signal, sys, xllamacpp
path, port, slots, length, tokens = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = path, ["127.0.0.1"], port
params.n_parallel, params.n_ctx, params.kv_unified, params.cont_batching = slots, tokens, True, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
params.endpoint_metrics, params.model_alias = True, "model"
server = xllamacpp.Server(params)
print("ABOUT", xllamacpp.__version__, xllamacpp.BUILD_INFO["compiler"], xllamacpp.get_system_info(), flush=True)
signal.pause()
"""


class Server:
    """A server process.

    Attributes:
      url: where it answers.
      process: of it.
      about: what it says about itself.
      model: its name of the model.
      body: fields that every request to it needs.
    """

    def __init__(
        self, url: str, process: subprocess.Popen[bytes], log: pathlib.Path, model: str, body: Mapping[str, Any]
    ):
        """Takes a process that was started and the file with its output."""
        self.url, self.process, self.model, self.body, self._log = url, process, model, body, log
        self.about = ""

    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def memory(self) -> int:
        """Bytes of memory that it has now."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kilobytes) * 1024


@contextlib.contextmanager
def start(
    kind: str, model: str, *, slots: int, length: int = 4096, python: str = "", flags: Sequence[str] = ()
) -> Iterator[Server]:
    """Runs a server until the block ends; gives it when it is ready.

    Args:
      kind: `s1jax`, `transformers` or `llama.cpp`.
      model: checkpoint, exported folder or GGUF file.
      slots: requests at one time.
      length: tokens of the longest sequence.
      python: that has the packages of the server; empty: this one.
      flags: further ones of the command.
    """
    python, port = python or sys.executable, _free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    body: dict[str, Any] = {}
    if kind == "s1jax":
        command = [
            python, "-m", "launch.serve", f"--checkpoint={model}", f"--port={port}", f"--slots={slots}",
            f"--cache_length={length}", "--served_model_name=model", *flags,
        ]  # fmt: skip
        name = "model"
    elif kind == "transformers":
        code = "from transformers.cli.transformers import main; main()"
        command = [
            python, "-c", code, "serve", model, "--continuous-batching", "--device", "cpu", "--dtype", "float32",
            "--trust-remote-code", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error",
            "--cb-block-size", "64", "--cb-num-blocks", str(slots * length // 64), *flags,
        ]  # fmt: skip
        name, body = model, {"stream_options": None}  # which it refuses; it sends the usage anyway
    else:
        command = [python, "-c", _LLAMA, model, str(port), str(slots), str(length), str(slots * length)]
        name = "model"
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "log")
        with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
            server = Server(f"http://127.0.0.1:{port}", process, log, name, body)
            try:
                _wait(server)
                server.about = "".join(line[6:] for line in server.output().splitlines() if line.startswith("ABOUT"))
                yield server
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(40)
                process.kill()


def _wait(server: Server) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{server.output()[-3000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
