"""`python -m launch.curate` from the outside: what it prints, its exit codes, its files."""

import json
import pathlib

import pytest

from tests.cli import forks


@pytest.fixture(scope="module")
def run():
    with forks.Forks("launch.curate", "s1jax.cli.curate", "s1jax.curation.pipeline") as server:
        yield server.run


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    file = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    rows = [
        {
            "question": f"How much is {i} and {i * i}?",
            "thinking_trajectories": [f"{i} and {i * i}"],
            "attempt": f"{i + i * i}",
            "pass_rate": (i % 5) / 4,
            "trace_tokens": 10 * i,
        }
        for i in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_it_prints_the_funnel_and_writes_every_file(run, pool, tmp_path):
    command = [f"--rows={pool}", f"--out={tmp_path}", "--against=none", "--size=10", "--block_size=150"]
    done = run(*command, "--dollars_per_million=2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split()[:4] == ["difficulty", "40", "->", "32"] for line in lines)
    assert any(line.startswith("a teacher's answers to those chosen: 10,") and "$0.00" in line for line in lines)
    assert "have a trace of more than 150 tokens" in done.stdout and "not compared with any" in done.stdout
    names = {"rows.jsonl", "dropped.parquet", "report.md", "report.json", "funnel.png", "stages", ".lock"}
    assert {path.name for path in pathlib.Path(tmp_path).iterdir()} == names
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rows=", "--out=x"], "give --rows=FILE,FILE and --out=FOLDER"),
        (["--against="], "--against is empty"),
        (["--against=none", "--preset=s1_paper"], "no column domain, which the rule selection"),
        (["--against=none", "--skip=nothing"], "--skip=nothing is not a rule of ours, which has strings, difficulty"),
        (["--against=none", "--preset=theirs"], "--preset=theirs"),
    ],
)
def test_bad_input_is_one_sentence(run, pool, tmp_path, flags, sentence):
    given = [f"--rows={pool}", f"--out={tmp_path / 'out'}", *flags]
    done = run(*given)
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and sentence in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out" / "rows.jsonl").exists()
