"""Presets on a made-up pool with known defects: the truth at every step."""

import collections
import json

import pyarrow.parquet as pq
import pytest

import s1jax
from benchmarks import curation_pool

ROWS = 4000


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    return folder, curation_pool.write(folder, ROWS, seed=0)


def test_the_pool_has_the_counts_of_the_paper():
    counts = curation_pool.counts(curation_pool.WHOLE)
    rows = curation_pool.WHOLE - counts["identity"] - counts["features"]
    assert rows == 54_116 and rows - counts["strings"] == 51_581
    assert rows - counts["strings"] - counts["difficulty"] == 24_496


def test_every_step_of_the_papers_preset_is_the_truth(pool, tmp_path):
    folder, truth = pool
    report = s1jax.curate(
        [str(folder / "pool.jsonl")], tmp_path, against=[str(folder / "eval.jsonl")], preset="s1_paper", size=200
    )
    found = collections.defaultdict(list)
    for one in pq.read_table(tmp_path / "dropped.parquet").to_pylist():
        assert one["reason"] and one["evidence"] and one["name"] and one["question"]
        found[{"copies": "identity"}.get(one["rule"], one["rule"])].append(one["id"].partition("#")[0])
    for rule, ids in truth.dropped.items():
        assert sorted(found[rule]) == sorted(ids), rule
    left = ROWS
    for stage in report.stages:
        assert stage.given == left
        left -= 0 if stage.name == "last_gate" else len(found[stage.name])
        assert stage.kept == left
    chosen = [json.loads(line)["id"].partition("#")[0] for line in (tmp_path / "rows.jsonl").open()]
    assert left == 200 == len(set(chosen)) and set(truth.first) < set(chosen)
    assert truth.clean == len(found["selection"]) + 200
    plan = {name: cost.tokens for name, cost in report.plan.costs.items()}
    # Rows without a known length count with the mean.
    assert plan["all questions"] == pytest.approx(truth.tokens["all"], rel=0.01)
    # Of a question with two answers the one with the smaller id stays; both have the same length.
    assert plan["those left before the teacher is asked"] == truth.tokens["clean"]
