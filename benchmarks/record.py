"""What every benchmark shares: alternating runs, medians, and a record with machine, versions and commit."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s1jax.training.callbacks import Callbacks

RESULTS = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "transformers", "google-tunix")


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int, in_a_row: int = 1) -> dict[str, list[float]]:
    """Seconds of each contender in every round; in a round they run one after the other, after one warm-up each.

    Args:
      contenders: what is timed, by name.
      rounds: how often.
      in_a_row: runs of a contender before it is the next one's turn; the median of them counts.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(statistics.median(_timed(run) for _ in range(in_a_row)))
    return seconds


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """Median, least and greatest of theirs / ours, round by round: how many times faster we are."""
    pairs = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def comparisons(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """`times_faster_than_NAME` of s1jax for every other contender, and the seconds themselves."""
    others = [name for name in seconds if name != "s1jax"]
    return {f"times_faster_than_{name}": ratios(seconds, "s1jax", name) for name in others} | {"seconds": seconds}


def add_peers(parser: argparse.ArgumentParser, known: Collection[str]) -> None:
    """Adds --peers, names out of `known` with commas between them."""

    def names(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is no peer; choose from {', '.join(known)}")
        return text.split(",")

    parser.add_argument("--peers", type=names, default=["transformers"], help=f"out of {', '.join(known)}")


def progress(what: str, every: int = 50) -> Callbacks:
    """Returns callbacks of a training run that print its notes, and its loss after every `every` steps."""
    from s1jax.training.callbacks import Callbacks

    def step(values: Mapping[str, Any]) -> None:
        if values["step"] % every == 0:
            print(f"{what}: step {values['step']}, loss {values['loss']:.4f}", flush=True)

    return Callbacks(on_note=print, on_step=step)


def write(name: str, results: Mapping[str, Any], *, speed: bool = False) -> None:
    """Prints the record and writes it to benchmarks/results/NAME.json, or of `speed` to results/PROCESSOR/NAME.json."""
    text = json.dumps({"benchmark": name, **environment(), **results}, indent=1)
    print(text)
    _file(name, speed).write_text(text + "\n")


def write_part(name: str, part: str, results: Mapping[str, Any]) -> None:
    """Writes one part of results/PROCESSOR/NAME.json, with machine, versions and date of its own; keeps the others."""
    file = _file(name, True)
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"benchmark": name, "parts": {}}
    record["parts"][part] = {**environment(), **results}
    file.write_text(json.dumps(record, indent=1) + "\n")


def _file(name: str, speed: bool) -> pathlib.Path:
    folder = RESULTS / _folder(_processor()) if speed else RESULTS
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.json"


def environment() -> dict[str, Any]:
    """Machine, versions, commit and date of a measurement."""
    import jax

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    root = pathlib.Path(__file__).parent.parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _folder(processor: str) -> str:
    """`Intel(R) Xeon(R) Processor family 6 model 143` -> `intel_xeon_family_6_model_143`."""
    return "_".join(re.sub(r"\(.*?\)|processor|cpu|@.*", " ", processor.lower()).split()) or "processor"


def _processor() -> str:
    """`AMD EPYC family 25 model 17`: hypervisors give processors of several generations one name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in found:
        return platform.processor()
    numbers = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    return " ".join([found["model name"], *numbers])
