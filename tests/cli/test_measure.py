"""`python -m launch.measure` from the outside: what it writes, what it samples again, what it says to wrong input."""

import dataclasses
import json
import re

import jax
import pytest

from s1jax.checkpoint import store
from s1jax.config.model import ModelConfig
from s1jax.curation import labels
from s1jax.distillation import distil
from s1jax.distillation.settings import DistilSettings
from s1jax.model import decoder
from s1jax.remote.client import Endpoint
from s1jax.tasks.countdown import problems
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.cli import forks
from tests.distillation.stand_in import StandIn, ok
from tests.test_imports import ROOT

ROWS = [row | {"source": "made"} for row in problems.prompt_rows("dev", 5)]
SAMPLING = ("--max_thinking_tokens=6", "--max_answer_tokens=6", "--tries=2", "--task=countdown", "--batch_size=2")
# Flags, and words of the one sentence they end in.
WRONG = [
    (["--rows="], "--rows is missing"),
    (["--out="], "--out is missing"),
    (["--student="], "nothing is to be measured; give --student=CKPT"),
    (["--student=", "--clusters=2"], "--clusters needs vectors"),
    (["--student=", "--clusters=9", "--encoder=words"], "5 different questions cannot be divided into 9 clusters"),
    (["--tries_of={folder}"], "--student and --tries_of both give pass rates"),
    (["--student=", "--tries_of={folder}", "--task=countdown"], "has no answers.jsonl; give the folder"),
    (["--labels=subjects", "--clusters=2"], "--clusters and --labels both give domains"),
    (["--labels_of={folder}"], "--labels_of goes with --labels"),
    (["--student=", "--labels={folder}/none.txt"], "none.txt cannot be read"),
    (["--encoder=words"], "--encoder goes with --clusters"),
    (["--student=", "--grade"], "none of the 5 answers can be graded; the first: .*pool.jsonl:1 has neither"),
    (["--student=", "--grade", "--coordinator=x:1", "--num_processes=2", "--process_id=1"], "runs in one process"),
    (["--rows={folder}/none.jsonl"], "none.jsonl does not exist"),
    (["--rows={folder}/bare.jsonl"], "none of the 1 rows can be graded; .* `answer` or `solution`"),
    (["--task=sums"], "--task=sums is not a task"),
    (["--temperature=0"], "--temperature=0 gives 8 equal tries"),
    (["--stop_above=1"], "--stop_above is 1, which no rate exceeds"),
    (["--tries=0"], "tries"),
    (["--out={folder}/pool.jsonl"], "pool.jsonl is not a folder"),
    (["--student={folder}/none", "--task=countdown"], "none is not a folder"),
    (["--student=hf://owner/model"], "is a URL"),
    (["--max_thinking_tokens=5000", "--task=countdown"], "pool.jsonl:1.* 5,?0.*context"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pool, and a random model with Countdown's tokenizer."""
    config = ModelConfig.dense(
        vocab_size=160, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=96,
    )  # fmt: skip
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    path = tmp_path_factory.mktemp("measure")
    params = decoder.init_params(config, jax.random.key(0))
    store.save_model(path / "model", params, config, tokenizer, chat.FORMATS["s1_plain"], {})
    write(path / "pool.jsonl", ROWS)
    write(path / "bare.jsonl", [{"question": "What is 1 plus 1?"}])
    return path


@pytest.fixture(scope="module")
def server():
    """Forks the command."""
    with forks.Forks("launch.measure", "s1jax.cli.measure", "s1jax.engine.engine", "s1jax.curation.difficulty") as made:
        yield made


def write(path, rows):
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_get_their_columns_and_tries_are_made_once(server, folder, tmp_path):
    def measure(rows, *flags):
        write(tmp_path / "pool.jsonl", rows)
        asked = (f"--rows={tmp_path}/pool.jsonl", f"--out={tmp_path}/out", f"--student={folder}/model")
        done = server.run(*asked, *SAMPLING, *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout, read(tmp_path / "out/rows.jsonl"), read(tmp_path / "out/tries.jsonl")

    said, rows, tries = measure(ROWS[:3])
    assert [{k: v for k, v in row.items() if not k.startswith("pass")} for row in rows] == ROWS[:3]
    assert [row["pass_tries"] for row in rows] == [2, 2, 2] and len(tries) == 6
    assert "3 rows: the student is right in 0.0 % of the tries" in said
    # Another row before the others, and half a line where a process was killed.
    whole = (tmp_path / "out/tries.jsonl").read_bytes()
    (tmp_path / "out/tries.jsonl").write_bytes(whole + whole[:40])
    _, rows, more = measure([ROWS[3], *ROWS[:3]])
    assert more[:6] == tries and len(more) == 8 and [row["pass_tries"] for row in rows] == [2] * 4
    other = server.run(
        *(f"--rows={tmp_path}/pool.jsonl", f"--out={tmp_path}/out", f"--student={folder}/model"), *SAMPLING, "--seed=1"
    )
    assert other.returncode == 2 and "tries.jsonl belongs to another run" in other.stderr


def test_clusters_and_verdicts_are_columns_too(server, folder, tmp_path):
    """By words and by hidden states; a verdict of an earlier grading goes where there is none now."""
    teacher = {"thinking_trajectories": ["t"], "attempt": "Answer: \\boxed{4}"}
    rows = [{**row, "solution": "4", "pass_rate": 0.5, **teacher} for row in problems.prompt_rows("dev", 6)]
    rows[2]["solution"], rows[4]["solution"] = "5", "first\nthen"
    rows[4]["correct"] = True
    write(tmp_path / "pool.jsonl", rows)
    for encoder in ("words", f"{folder}/model"):
        flags = [f"--rows={tmp_path}/pool.jsonl", f"--out={tmp_path}/out", "--clusters=3", f"--encoder={encoder}"]
        done = server.run(*flags, "--grade")
        assert done.returncode == 0, done.stderr
        made = read(tmp_path / "out/rows.jsonl")
        assert [row["question"] for row in made] == [row["question"] for row in rows]
        assert [row.get("correct") for row in made] == [True, True, False, True, None, True]
        assert all(row["pass_rate"] == 0.5 for row in made)
        assert {row["domain"] for row in made} == {"0", "1", "2"}
        assert "6 of 6 rows in 3 domains: the largest is" in done.stdout
        assert "4 answers are right, 1 are wrong" in done.stdout
        assert "note: 1 of 6 answers get no verdict; the first:" in done.stdout


def test_an_endpoint_tries_questions_and_names_labels(server, tmp_path):
    """Through `distil`, as the command says; an unknown label is counted."""
    rows = [{"question": f"What is {i} + {i}?", "solution": str(2 * i)} for i in range(3)]
    write(tmp_path / "pool.jsonl", rows)
    measure = [f"--rows={tmp_path}/pool.jsonl", f"--out={tmp_path}/out", "--labels=subjects"]
    done = server.run(*measure)
    assert (
        done.returncode == 2 and "labels has no labels yet; ask a teacher with s1jax distil --questions=" in done.stderr
    )
    assert not (tmp_path / "out/rows.jsonl").exists()
    template = (tmp_path / "out/template.txt").read_text()
    settings = DistilSettings(max_tokens=64, allow_no_thinking=True)
    with StandIn() as teacher:
        endpoint = Endpoint(teacher.url, "small")
        teacher.script = {row["question"]: [ok(content="Answer: 2")] for row in rows}
        distil.distil(rows, tmp_path / "tries", endpoint, dataclasses.replace(settings, answers=2))
        for row, label in zip(rows, ("**Arithmetic**", "number theory", "sums"), strict=True):
            teacher.script[template.replace("{question}", row["question"])] = [ok(content=label)]
        asked = dataclasses.replace(settings, template=template)
        distil.distil(tmp_path / "out/questions.jsonl", tmp_path / "out/labels", endpoint, asked)
    done = server.run(*measure, f"--tries_of={tmp_path}/tries")
    assert done.returncode == 0, done.stderr
    made = read(tmp_path / "out/rows.jsonl")
    assert [row["pass_rate"] for row in made] == [0.0, 1.0, 0.0] and made[0]["pass_tries"] == 2
    assert [row.get("domain") for row in made] == ["arithmetic", "number theory", None]
    assert f"note: 1 answers name none of the {len(labels.SUBJECTS)} labels, or several: 'sums'." in done.stdout


@pytest.mark.parametrize(("flags", "words"), WRONG)
def test_wrong_input_is_one_sentence(server, folder, tmp_path, flags, words):
    given = [f"--rows={folder}/pool.jsonl", f"--out={tmp_path}/out", f"--student={folder}/model"]
    done = server.run(*given, *[flag.format(folder=folder) for flag in flags])
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(words, line), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/rows.jsonl").exists()
