"""Whole curations of a made-up pool with known defects: against the truth, without Beam and with it.

    python -m benchmarks.curation_runs --folder=runs/curation_runs [--rows=59029] [--trace_characters=200]
    python -m benchmarks.curation_runs --folder=runs/curation_beam --rows=200000 --beam="--direct_num_workers=1"

The first writes the pool of `benchmarks.curation_pool` once, runs `s1_paper` and `ours` on it, checks what `s1_paper`
drops against the truth rule by rule, and records seconds, memory and the plan of a teacher's tokens. The second runs
both presets without Beam and with it, and compares the sets; it needs an environment with apache-beam (extra `beam`).
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import resource
import shutil
import time
from typing import Any

import pyarrow.parquet as pq

import s1jax
from benchmarks import curation_pool, record

PRESETS = ("s1_paper", "ours")
SHARDS = 16


def sources(folder: pathlib.Path) -> list[str]:
    """The shards of the pool."""
    return [str(file) for file in sorted(folder.glob("pool-*.jsonl"))]


def run(folder: pathlib.Path, preset: str, beam: str | None = None) -> tuple[dict[str, Any], set[str]]:
    """Curates from the start; returns what is recorded of it, and the chosen ids."""
    out = folder / f"out_{preset}{'' if beam is None else '_beam'}"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    report = s1jax.curate(
        sources(folder), out, against=[str(folder / "eval.jsonl")], preset=preset, dollars_per_million=2.19, beam=beam
    )
    seconds = time.perf_counter() - start
    with (out / "rows.jsonl").open() as lines:
        chosen = {json.loads(line)["id"] for line in lines}
    plan = report.plan
    assert plan is not None
    costs = {
        name: {"rows": cost.rows, "tokens": cost.tokens, "dollars": cost.dollars} for name, cost in plan.costs.items()
    }
    return {"seconds": seconds, "counts": dict(report.counts), "costs": costs}, chosen


def mistakes(folder: pathlib.Path) -> dict[str, int]:
    """Rule -> rows of `s1_paper` that it dropped or kept against the truth."""
    truth = json.loads((folder / "truth.json").read_text())
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    table = pq.read_table(folder / "out_s1_paper" / "dropped.parquet", columns=["id", "rule"]).to_pydict()
    for row_id, rule in zip(table["id"], table["rule"], strict=True):
        found["identity" if rule == "copies" else rule][row_id.partition("#")[0]] += 1
    wrong = {}
    for rule, ids in truth["dropped"].items():
        expected = collections.Counter(ids)
        wrong[rule] = ((expected - found[rule]) + (found[rule] - expected)).total()
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/curation_runs"))
    parser.add_argument("--rows", type=int, default=curation_pool.WHOLE)
    parser.add_argument("--trace_characters", type=int, default=200)
    parser.add_argument("--beam", default=None, help="options of Apache Beam; compares it with a run without")
    args = parser.parse_args()
    made_of, written = [args.rows, args.trace_characters], args.folder / "written.json"
    if not written.exists() or json.loads(written.read_text()) != made_of:
        curation_pool.write(args.folder, args.rows, 0, args.trace_characters, SHARDS)
        written.write_text(json.dumps(made_of))
    results: dict[str, Any] = {
        "rows": args.rows,
        "bytes": sum(pathlib.Path(one).stat().st_size for one in sources(args.folder)),
    }
    sets = {}
    for preset in PRESETS:
        results[preset], sets[preset] = run(args.folder, preset)
    results["megabytes_without_beam"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results["rows_against_the_truth"] = mistakes(args.folder)
    if args.beam is not None:
        for preset in PRESETS:
            results[f"{preset}_beam"], found = run(args.folder, preset, args.beam)
            results[f"{preset}_beam"]["rows_that_differ"] = len(found ^ sets[preset])
        results["megabytes_with_beam"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record.write("curation_runs" if args.beam is None else "curation_beam", results, speed=True)


if __name__ == "__main__":
    main()
