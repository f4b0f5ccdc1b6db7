"""Checks a machine: `s1jax check [--out=check.json] [--parts=kernels,decode,...] [--minutes=8]`.

The first command to run on a new machine. It lists devices, memory and versions, and then measures:

    transformers  Hugging Face transformers on the shapes of `decode` and `train`, where torch is installed
    kernels       attention kernels against a float32 reference, forward and backward; pages and int8, forward
    tokens        greedy tokens of a small model against those of the CPU
    speed         memory bandwidth and the peak of matrix products
    decode        decode steps of Qwen2.5-1.5B at batch 1 and 64, against the memory's roofline
    train         train steps of Qwen2.5-1.5B and 3B on packed rows of 8,192 and 32,768 tokens, with MFU

On a CPU all of it runs with tiny shapes, and Pallas kernels run in their interpreter. The first device is measured.
What the machine cannot run, or has no time for, is named with the reason. --out gets machine, versions and every figure
with its unit.

Exit codes: 0 if nothing failed, 1 if a check failed or the time was up, 2 if a flag is wrong.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from s1jax.check import report
from s1jax.check.report import Check, Line
from s1jax.cli import progress, terminal
from s1jax.errors import UserError
from s1jax.io import files, paths

# Seconds of each part, of 8 minutes. The remaining 40 are slack for a check that starts late.
SECONDS = {"transformers": 60, "kernels": 100, "tokens": 40, "speed": 10, "decode": 70, "train": 160}
_PACKAGES = (
    *("s1jax", "jax", "jaxlib", "jax-cuda12-plugin", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("torch", "transformers"),
)

_OUT = flags.DEFINE_string("out", "check.json", "JSON file for machine, versions and figures.")
_PARTS = flags.DEFINE_list("parts", list(SECONDS), "Parts to run in this order, after transformers if it is named.")
_MINUTES = flags.DEFINE_float("minutes", 8.0, "The most that all parts together take.", 0.1)


def main() -> int:
    start_time = time.monotonic()
    out = paths.local(_OUT.value, "--out")
    unknown = [part for part in _PARTS.value if part not in SECONDS]
    if unknown or not _PARTS.value:
        raise UserError(f"--parts={','.join(_PARTS.value)} is not a list of {', '.join(SECONDS)}; name one or more.")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out={out} is not a file in a folder that exists; name one.")
    if _PARTS.value == ["transformers"]:
        lines, machine = _peers(), {}
    else:
        budgets = {part: limit * _MINUTES.value / 8 for part, limit in SECONDS.items()}
        lines = _other_process(budgets["transformers"]) if "transformers" in _PARTS.value else []
        machine = _machine()
        print(_heading(machine), flush=True)
        limit = start_time + 60 * _MINUTES.value
        with _Run(out, machine, lines, start_time, limit) as run:
            run.all(_checks([part for part in _PARTS.value if part != "transformers"]), budgets)
        lines = run.lines
        _show(lines)
    _write(out, machine, lines, start_time)
    failed = report.failed(lines)
    if machine:
        print(
            f"{'; '.join(f'{line.part} {line.name}' for line in failed)} failed" if failed else "nothing failed", end=""
        )
        print(f"; wrote {out}")
    return 1 if failed else 0


def _checks(parts: Sequence[str]) -> list[Check]:
    import jax

    from s1jax.check import kernels, sizes, speed, tokens

    kind = jax.default_backend()
    shapes = sizes.tiny() if kind == "cpu" else sizes.real()
    found = [*kernels.checks(shapes, kind), *tokens.checks(shapes), *speed.Speed(shapes).checks()]
    wanted = {part: [check for check in found if check.part == part] for part in parts}
    return [check for part in parts for check in wanted[part]]


def _peers() -> list[Line]:
    """The part `transformers`, in this process."""
    from s1jax.check import peers, sizes

    on_gpu = False
    with contextlib.suppress(ImportError):
        import torch

        on_gpu = torch.cuda.is_available()
    return report.run_all(peers.checks(sizes.real() if on_gpu else sizes.tiny()), SECONDS)


def _other_process(seconds: float) -> list[Line]:
    """The part `transformers` in a process that ends before jax takes the memory of the device."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return [Line("transformers", "all", "not run", {}, f"{package} is not installed", 0.0)]
    print("transformers is measured first ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "peers.json")
        command = [sys.executable, "-m", "s1jax.cli", "check", "--parts=transformers", f"--out={out}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
        except subprocess.TimeoutExpired:
            reason = f"it did not end within {seconds + 30:.0f} s"
            return [Line("transformers", "all", "not run", {}, reason, seconds + 30)]
        if not out.is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return [Line("transformers", "all", "not run", {}, f"exit code {done.returncode}: {last:.200}", 0.0)]
        lines = [Line.of(record) for record in json.loads(out.read_text())["checks"]]
    # Another program that fails says nothing about s1jax.
    return [Line(**{**vars(line), "status": "not run"}) if line.status == "fail" else line for line in lines]


class _Run:
    """Runs checks with a bar, and ends the process with what there is when the time is up."""

    def __init__(self, out: pathlib.Path, machine: dict[str, Any], lines: list[Line], start_time: float, limit: float):
        """Runs nothing yet; `limit` is on the clock of `start_time`, in seconds."""
        self.lines = list(lines)
        self._out, self._machine, self._start_time = out, machine, start_time
        self._running: Check | None = None
        self._timer = threading.Timer(max(limit - time.monotonic(), 0.1), self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _Run:
        self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._timer.cancel()

    def all(self, checks: Sequence[Check], budgets: dict[str, float]) -> None:
        """Adds a row for each check to `lines`."""
        before = len(self.lines)
        with progress.Bar("checking", len(checks)) as bar:

            def begin(check: Check) -> None:
                self._running = check
                bar.phase(f"{check.part}: {check.name}")

            def end(line: Line) -> None:
                self.lines.append(line)
                self._running = None
                bar.update(len(self.lines) - before, line.status)

            report.run_all(checks, budgets, begin, end)

    def _expire(self) -> None:
        """Called by the timer's thread: a compilation or a kernel that hangs cannot be interrupted."""
        check = self._running
        lines = list(self.lines)
        if check is not None:
            lines.append(Line(check.part, check.name, "fail", {}, f"not done within {_MINUTES.value:g} minutes", 0.0))
        _show(lines)
        _write(self._out, self._machine, lines, self._start_time)
        print(f"the {_MINUTES.value:g} minutes are over; wrote {self._out}", flush=True)
        os._exit(1)


def _machine() -> dict[str, Any]:
    """Machine and devices, as JSON values."""
    import jax

    devices = [
        {"kind": device.device_kind, "memory_bytes": (device.memory_stats() or {}).get("bytes_limit")}
        for device in jax.local_devices()
    ]
    return {
        "date": datetime.date.today().isoformat(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": devices,
        "environment": {name: value for name in ("XLA_FLAGS", "JAX_PLATFORMS") if (value := os.environ.get(name))},
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _heading(machine: dict[str, Any]) -> str:
    kinds = [device["kind"] for device in machine["devices"]]
    memory = machine["devices"][0]["memory_bytes"]
    each = f", {memory / 1e9:.1f} GB for programs" if memory else ""
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    return terminal.safe(f"{len(kinds)} x {kinds[0]}{each}; {machine['platform']}, {machine['cpus']} CPUs\n{versions}")


def _write(out: pathlib.Path, machine: dict[str, Any], lines: Sequence[Line], start_time: float) -> None:
    record = {
        "machine": machine,
        "versions": _versions(),
        "seconds": round(time.monotonic() - start_time, 1),
        "passed": not report.failed(lines),
        "checks": [line.record() for line in lines],
    }
    files.write_text(os.path.realpath(out), json.dumps(record, indent=1) + "\n")


def _show(lines: Sequence[Line]) -> None:
    table = Table()
    for heading in ("part", "check", "result", "figures", "s", "note"):
        table.add_column(heading, justify="right" if heading == "s" else "left")
    for line in lines:
        figures = ", ".join(f"{name} {figure}" for name, figure in line.figures.items())
        row = (line.part, line.name, line.status, figures, f"{line.seconds:.1f}", line.note)
        table.add_row(*(terminal.safe(cell) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
