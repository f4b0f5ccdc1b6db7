"""Seconds from the start of a process to the first id that it shows, on the base checkpoint that the quickstart tunes.

    python -m benchmarks.first_id [--rounds 5]

first   launch.sample with an empty compilation cache.
second  the same command once more, as often as there are rounds.
import  a process that imports jax, flax.nnx and Orbax and does nothing, in turn with them: no second process is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import record

_SAMPLE = [
    "-m", "launch.sample", "--checkpoint=package:countdown_base", "--prompt=Make 24 from 3 8 1",
    "--max_thinking_tokens=200", "--max_answer_tokens=40",
]  # fmt: skip
_IMPORT = ["-c", "import jax, flax.nnx, orbax.checkpoint; print('thinking\\n.')"]


def until_first_id(arguments: list[str], cache: str) -> float:
    """Seconds until a process shows something below the heading of its thinking."""
    env = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONUNBUFFERED": "1"}
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        shown = b""
        while not shown.partition(b"\n")[2]:
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                raise SystemExit("the process ended without an id")
            shown += part
        seconds = time.perf_counter() - begun
        process.stdout.read()
    return seconds


def main() -> None:
    """Runs what the module's text says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {"second": [], "import": []}
    with tempfile.TemporaryDirectory() as cache:
        first = until_first_id(_SAMPLE, cache)
        for _ in range(rounds):
            seconds["second"].append(until_first_id(_SAMPLE, cache))
            seconds["import"].append(until_first_id(_IMPORT, cache))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    found = {"medians": {"first": first, **medians}, "seconds": {"first": [first], **seconds}}
    record.write("first_id", found, speed=True)


if __name__ == "__main__":
    main()
