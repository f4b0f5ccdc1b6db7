"""A curation on Apache Beam's DirectRunner against one without Beam: the same rows, reasons and counts.

apache-beam pins pyarrow, protobuf and numpy below what the other extras take, so it is tested in an environment of its
own: `python -m venv beam; beam/bin/python -m pip install -e .[beam] pytest`.
"""

import json
import random

import pyarrow.parquet as pq
import pytest

import s1jax
from s1jax.errors import UserError

pytest.importorskip("apache_beam", reason="apache-beam is not installed: nothing is known here of --beam")


def row(i, rng, **more):
    """A row of a pool with answers, copies and gaps."""
    return {
        "question": f"What is {i} plus {i * 7}?",
        "thinking_trajectories": ["think " * rng.randrange(1, 30)],
        "attempt": f"Answer: {8 * i}",
        "domain": f"domain {rng.randrange(5)}",
        "pass_rate": rng.choice([0.0, 0.25, 0.75, 1.0, None]),
        "correct": rng.random() < 0.6,
        "trace_tokens": rng.randrange(100, 9000),
        "source_type": rng.choice(["qfq/openaimath/Algebra", "x", "Idavidrein/gpqa", "qq8933/AIME_1983_2024"]),
    } | more


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Eight shards, and an evaluation set that some rows hold."""
    folder, rng = tmp_path_factory.mktemp("pool"), random.Random(0)
    rows = [row(i, rng) for i in range(300)]
    rows += [row(i, rng) for i in range(0, 60, 2)]  # further answers
    rows += [dict(one) for one in rows[:7]]  # copies
    text = "A train leaves the station at noon and travels east at a speed of sixty miles per hour for how long?"
    rows += [row(i, rng, question=f"{text} Show step {i}.", pass_rate=0.0) for i in (1, 2)]
    rows += [{"question": f"Without a trace {i}?", "pass_rate": 0.0} for i in range(3)]
    for i in range(12):  # near-duplicates in groups of 2 and 3, and a variant with other numbers
        tail = "runs from the old mill to the river bend and back again before the evening bell rings in the village"
        rows += [
            row(i, rng, question=f"{who} {tail} {i} times.", pass_rate=0.25)
            for who in ("Ann", "Ben", "Cy")[: 2 + i % 2]
        ]
    rng.shuffle(rows)
    for shard in range(8):
        (folder / f"pool-{shard}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows[shard::8]))
    (folder / "eval.jsonl").write_text(json.dumps({"question": text}) + "\n")
    return folder


def parts(out):
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    drops = pq.read_table(out / "dropped.parquet").to_pylist()
    report = json.loads((out / "report.json").read_text())
    return lines, sorted(drops, key=lambda one: (one["id"], one["name"])), report


@pytest.mark.parametrize("preset", ["ours", "questions", "s1_paper", "s1_code"])
def test_beam_chooses_what_a_plain_run_chooses(pool, tmp_path, monkeypatch, preset):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("fetches something, as Prism would be"))
    settings = dict(against=[str(pool / "eval.jsonl")], preset=preset, size=60, seed=3, block_size=4000)
    plain = s1jax.curate([str(file) for file in sorted(pool.glob("pool-*"))], tmp_path / "plain", **settings)
    beam = s1jax.curate([f"{pool}/pool-*.jsonl"], tmp_path / "beam", beam="", **settings)
    (rows, drops, report), (beam_rows, beam_drops, beam_report) = parts(tmp_path / "plain"), parts(tmp_path / "beam")
    assert len(rows) == 60 and beam_rows == rows
    assert beam_drops == drops and beam.counts == plain.counts
    if preset == "ours":
        near = next(stage for stage in plain.stages if stage.name == "near_duplicates")
        assert near.dropped >= 12
    for name in ("funnel", "selection", "decontamination", "plan", "block", "notes"):
        assert beam_report[name] == report[name], name


def test_without_a_size_beam_keeps_the_same_set(pool, tmp_path):
    settings = dict(against=["none"], preset="questions", size=0)
    sources = [str(file) for file in pool.glob("pool-*")]
    s1jax.curate(sources, tmp_path / "plain", **settings)
    s1jax.curate(sources, tmp_path / "beam", beam="--direct_num_workers=1", **settings)
    plain, beam = (parts(tmp_path / name)[0] for name in ("plain", "beam"))
    assert sorted(plain, key=lambda one: one["id"]) == sorted(beam, key=lambda one: one["id"])


@pytest.mark.parametrize(
    ("change", "beam", "sentence"),
    [
        ({"pass_rate": None}, "", "no column pass_rate"),
        ({"pass_rate": 1.0}, "", "difficulty dropped all 1 rows"),
        ({"question": 7}, "", r"one.jsonl:1.*question"),
        ({}, "--no_such_option=3", "--no_such_option=3, which is not an option"),
        ({}, "--streaming=perhaps", "not understood"),
    ],
)
def test_what_a_user_can_correct_is_one_sentence(tmp_path, change, beam, sentence):
    one = row(1, random.Random(0), pass_rate=0.5) | change
    (tmp_path / "one.jsonl").write_text(json.dumps({k: v for k, v in one.items() if v is not None}) + "\n")
    with pytest.raises(UserError, match=sentence):
        s1jax.curate([str(tmp_path / "one.jsonl")], tmp_path / "out", against=["none"], beam=beam)
    assert not (tmp_path / "out" / "rows.jsonl").exists()
