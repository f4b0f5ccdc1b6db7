"""What every benchmark shares: alternating runs, medians, and a record with machine, versions and commit."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "transformers", "google-tunix")


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in every round; in a round they run one after the other, after one warm-up each."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


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


def write(name: str, results: Mapping[str, Any]) -> None:
    """Prints the record and writes it to benchmarks/results/NAME.json."""
    record = {"benchmark": name, **environment(), **results}
    text = json.dumps(record, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")


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


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
