"""`python -m launch.evaluate` from the outside: what it writes, and what it says to wrong input."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from s1jax.checkpoint import store
from s1jax.config import ModelConfig
from s1jax.data import countdown
from s1jax.evaluate import grading, scaling
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def evaluate(*flags):
    command = [sys.executable, "-m", "launch.evaluate", *map(str, flags)]
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(command, cwd=ROOT, env=quick, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model with Countdown's tokenizer."""
    config = ModelConfig(
        vocab_size=128, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=512,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "random"
    tokenizer = Tokenizer.load(ROOT / "s1jax/assets/countdown_tokenizer")
    params = decoder.init_params(config, jax.random.key(0))
    store.save_model(folder, params, config, tokenizer, chat.FORMATS["s1_plain"], {"made by": "a test"})
    return folder


@pytest.fixture(scope="module")
def countdown_run(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("countdown") / "deep" / "results"
    flags = [
        f"--checkpoint={checkpoint}", "--budgets=0,8,none", "--waits=0,2", f"--out={out}", "--num_problems=10",
        "--max_thinking_tokens=40", "--batch_size=4", "--temperature=1", "--seed=3",
    ]  # fmt: skip
    return evaluate(*flags), out, flags


def test_countdown_writes_a_table_a_plot_and_all_samples(countdown_run):
    outcome, out, _ = countdown_run
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(file.name for file in out.iterdir()) == ["results.json", "samples.jsonl", "scaling.png"]
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    for words in ("cut at 0", "cut at 8", "no limit", "Wait x2", "Control", "Scaling", "Performance"):
        assert words in outcome.stdout
    assert "run 2 of 4: cut at 8" in outcome.stderr and "Traceback" not in outcome.stderr

    results = json.loads((out / "results.json").read_text())
    assert results["problems"] == 10 and results["checkpoint"] == {"made by": "a test"}
    assert {"jax", "python"} <= set(results["versions"]) and results["machine"]["cpus"] > 0
    assert results["asked"]["controls"]["temperature"] == 1 and results["seconds"] > 0
    assert [run["name"] for run in results["runs"]] == ["cut at 0", "cut at 8", "no limit", "Wait x2"]
    assert [(run["budgets"], run["waits"]) for run in results["runs"]] == [
        (True, False), (True, False), (True, True), (False, True),
    ]  # fmt: skip


def test_the_table_is_what_the_samples_say(countdown_run):
    _, out, _ = countdown_run
    results = json.loads((out / "results.json").read_text())
    samples = collections.defaultdict(list)
    for line in (out / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        samples[row["run"]].append(row)
    limits = {"cut at 0": 0, "cut at 8": 8, "no limit": 40, "Wait x2": 40}
    for run in results["runs"]:
        rows = samples[run["name"]]
        assert [row["problem"] for row in rows] == list(range(10)) and run["control"] == 100
        assert [row["controls"]["seed"] for row in rows] == list(range(3, 13))
        assert all(row["controls"]["max_thinking_tokens"] == limits[run["name"]] for row in rows)
        assert all(row["thinking_tokens"] <= limits[run["name"]] for row in rows)
        assert all(row["correct"] == countdown.grade(row["answer"], row) for row in rows)
        assert run["thinking_tokens"] == pytest.approx(sum(row["thinking_tokens"] for row in rows) / 10)
        assert run["answer_tokens"] == pytest.approx(sum(row["answer_tokens"] for row in rows) / 10)
        assert (run["accuracy"], run["error"]) == scaling.accuracy([row["correct"] for row in rows])
        assert run["cut"] == 10 * sum(row["thinking_end"] == "cut" for row in rows)
    assert all(row["controls"]["num_waits"] == 2 for row in samples["Wait x2"])
    questions = [row["question"] for row in countdown.prompt_rows("test", 10)]
    assert [row["question"] for row in samples["no limit"]] == questions


def test_a_folder_with_other_results_is_left_alone(countdown_run):
    _, out, flags = countdown_run
    before = (out / "results.json").read_bytes()
    outcome = evaluate(*flags, "--seed=4")
    assert outcome.returncode == 2 and "belongs to another evaluation" in outcome.stderr
    assert (out / "results.json").read_bytes() == before


def test_a_file_of_questions_is_graded_as_mathematics(checkpoint, tmp_path):
    file = tmp_path / "sums.jsonl"
    rows = [
        {"question": "Make 21 from 3 7 1", "answer": "three sevens\n#### 21"},
        {"question": "Make 5 from 2 3 1", "solution": "so \\boxed{5}"},
        {"question": "Make 6 from 2 3 1", "answer": 6},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    out = tmp_path / "out"
    outcome = evaluate(
        f"--checkpoint={checkpoint}", f"--task={file}", "--budgets=4", f"--out={out}", "--num_problems=2",
        "--max_thinking_tokens=8", "--max_answer_tokens=6",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in samples] == ["21", "5"]
    assert [row["correct"] for row in samples] == [grading.correct(row["answer"], row["reference"]) for row in samples]
    results = json.loads((out / "results.json").read_text())
    assert results["metrics"]["all"]["scaling"] is None and "2 problems" in outcome.stdout


# Runs the launcher once for each list of flags, in one process because importing JAX takes longer than all the rest.
MANY = """
import json, sys
from absl.testing import flagsaver
from launch import cli, evaluate
for flags in json.loads(sys.argv.pop()):
    with flagsaver.flagsaver():
        sys.argv[1:] = flags
        try:
            cli.run(evaluate.main)
        except SystemExit as end:
            print(end.code)
"""
WRONG_FLAGS = [
    (["--checkpoint=", "--budgets=0"], "--checkpoint is missing"),
    (["--budgets=0", "--out="], "--out is missing"),
    ([], "--budgets and --waits are both empty"),
    (["--budgets=0,-3"], '--budgets has "-3"'),
    (["--waits=none"], '--waits has "none"'),
    (["--budgets=0,500"], "--budgets has 500, more than --max_thinking_tokens 384"),
    (["--checkpoint=x", "--budgets=0"], "x is not a folder"),
    (["--budgets=0", "--num_problems=5000"], "5000 were asked for"),
    (["--budgets=0", "--temperature=-1"], "temperature is -1.0"),
    (["--budgets=0", "--buget=3"], "buget"),
    (["--budgets=0", "--task=nothing.jsonl"], "nothing.jsonl does not exist"),
    (["--waits=1", "--num_problems=3", "--max_thinking_tokens=600"], "context length is 512"),
]
WRONG_ROWS = [
    ("", "no rows"),
    ('{"question": "Make 5", "answer": 5}\n{"question": ', "rows1.jsonl:2 is not JSON"),
    ('{"question": "Make 5", "answer": 5}\n\n{"question": "Make 5"}', "rows2.jsonl:3: no answer"),
    ('{"questions": "Make 5", "answer": 5}', "rows3.jsonl:1: no text `question`"),
    ('{"question": "Make 5", "answer": "so\\nit is"}', "rows4.jsonl:1: `answer` has several lines"),
]


def test_wrong_input_ends_in_one_sentence_that_names_it(checkpoint, tmp_path):
    cases = list(WRONG_FLAGS)
    for i, (text, words) in enumerate(WRONG_ROWS):
        (tmp_path / f"rows{i}.jsonl").write_text(text)
        cases.append((["--budgets=0", f"--task={tmp_path}/rows{i}.jsonl"], words))
    every = [[f"--checkpoint={checkpoint}", f"--out={tmp_path}/out{i}", *flags] for i, (flags, _) in enumerate(cases)]
    command = [sys.executable, "-c", MANY, json.dumps(every)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert outcome.stdout.split() == ["2"] * len(cases), outcome.stderr
    sentences = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in outcome.stderr
    for sentence, (_, words) in zip(sentences, cases, strict=True):
        assert words in sentence
    assert not list(tmp_path.glob("out*/results.json"))
