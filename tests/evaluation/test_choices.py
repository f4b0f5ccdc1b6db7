"""An evaluation on multiple choice, with a tokenizer that can write letters."""

import json

import jax
import pytest

from s1jax.checkpoint import store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.evaluation import evaluate as evaluate_lib
from s1jax.grading import choices, compare
from s1jax.model import decoder
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests import byte_tokenizer

ROWS = [
    {"question": "Which is the largest?", "choices": ["5", "7", "6"], "answer": "B"},
    {"question": "Which is even?", "choices": ["1", "2"], "answer": 1},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model over bytes, the rows, and the evaluation of one on the other."""
    folder = tmp_path_factory.mktemp("choices")
    byte_tokenizer.save(folder)
    config = ModelConfig.dense(
        vocab_size=258, d_model=32, mlp_dim=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        tied_embeddings=True, context_length=512,
    )  # fmt: skip
    params = decoder.init_params(config, jax.random.key(0))
    loaded = Tokenizer.load(folder)
    store.save_model(folder / "model", params, config, loaded, chat.FORMATS["s1_plain"], {"made": "for a test"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    evaluate(folder)
    return folder


def evaluate(folder):
    engine = Engine(folder / "model", slots=4, cache_length=256)  # one program for all runs
    params = SamplingParams(max_thinking_tokens=16, max_answer_tokens=8)
    with pytest.MonkeyPatch.context() as patch:  # drawing takes a second
        patch.setattr(evaluate_lib.plot, "draw", lambda *_: None)
        patch.setattr(evaluate_lib.plot, "save", lambda *_: None)
        evaluate_lib.evaluate(
            engine, f"choices:{folder}/rows.jsonl", ["none", "majority:3:temperature=1"], folder / "out", params=params
        )


def test_choices_are_shown_and_graded_by_their_letters(folder):
    samples = [json.loads(line) for line in (folder / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["run"], row["problem"]) for row in samples] == [
        ("no limit", 0), ("no limit", 1), *[("majority of 3 at 1", i) for i in (0, 0, 0, 1, 1, 1)]
    ]  # fmt: skip
    shown = ["Which is the largest?\n\nA) 5\nB) 7\nC) 6", "Which is even?\n\nA) 1\nB) 2"]
    for row in samples:
        assert row["question"] == shown[row["problem"]] and row["choices"] == ROWS[row["problem"]]["choices"]
        assert row["reference"] == "B"
        assert row["correct"] == (choices.letter(row["answer"], row["choices"]) == "B")
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["problems"] == 2 and [run["name"] for run in results["runs"]] == ["no limit", "majority of 3 at 1"]
    assert results["grader"] == f"letters, {compare.grader()}" and "math-verify 0." in results["grader"]
    assert all(len(row["mark"]) == 16 for row in samples) and [run["undecided"] for run in results["runs"]] == [0, 0]
    right = [row["correct"] for row in samples if row["run"] == "no limit"]
    assert results["runs"][0]["accuracy"] == 50 * sum(right)


def test_letters_count_however_they_are_written(folder):
    """Answers are put into the samples, and the same call grades them again."""
    file = folder / "out" / "samples.jsonl"
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    answers = ["Answer: (B)", "Answer: 1", *["so B", "C", "Answer: 7"], *["A", "B", "\\boxed{\\text{A}}"]]
    lines = [json.dumps(row | {"answer": answer}) for row, answer in zip(samples, answers, strict=True)]
    file.write_text("\n".join(lines) + "\n")
    evaluate(folder)
    results = json.loads((folder / "out" / "results.json").read_text())
    assert [run["accuracy"] for run in results["runs"]] == [50, 50]
    graded = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["correct"] for row in graded] == [True, False, True, False, True, False, True, False]
