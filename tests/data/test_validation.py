"""Which rows are validated on, and what becomes of the training rows."""

import json
import pathlib

import numpy as np
import pytest

import s1jax
from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data import sources, validation
from s1jax.data.s1k import Row
from s1jax.errors import UserError
from s1jax.tasks.countdown import problems
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer

ROWS = [Row(f"question {i}", "trace", "answer", f"rows:{i}") for i in range(40)]


def split(wanted, rows=ROWS, **data):
    notes: list[str] = []
    return (*validation.split(rows, DataConfig(validation=wanted, **data), notes), notes)


@pytest.mark.parametrize(("wanted", "count"), [("7", 7), ("0.05", 2), ("0.051", 3), (".5", 20)])
def test_a_number_or_a_share_of_the_rows_is_held_out(wanted, count):
    kept, held, notes = split(wanted)
    assert len(held) == count and sorted(kept + held, key=ROWS.index) == ROWS and not set(kept) & set(held)
    assert kept == sorted(kept, key=ROWS.index) and held == sorted(held, key=ROWS.index)
    assert notes == [f"{count} of 40 rows are held out for validation (data.validation {wanted})."]
    assert split(wanted)[1] == held != split(wanted, seed=1)[1]
    assert held != ROWS[-count:] and held != ROWS[:count]


@pytest.mark.parametrize("wanted", ["0", "-3", "1.5", "1.0", "nan", "inf", "40"])
def test_numbers_that_hold_nothing_out(wanted):
    with pytest.raises(UserError, match=rf"data\.validation is {wanted}[;,]"):
        split(wanted)


def test_rows_of_a_file_or_of_another_split(tmp_path):
    def write(name, count, prefix):
        rows = [json.dumps({"prompt": f"{prefix} {i}", "completion": "<think>t</think>a"}) for i in range(count)]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(rows))

    write("rows/train.jsonl", 5, "question")
    write("rows/validation.jsonl", 3, "own")
    write("more/test.jsonl", 4, "question")
    folder = str(tmp_path / "rows")
    for wanted in ("validation", "val", "dev"):
        kept, held, notes = split(wanted, source=folder)
        assert kept == ROWS and [row.question for row in held] == ["own 0", "own 1", "own 2"]
        assert notes[-1] == f"3 rows are validated on (data.validation {wanted})."
    for wanted in (f"{tmp_path}/more", f"{tmp_path}/more/test.jsonl"):
        kept, held, notes = split(wanted)
        assert kept == ROWS and len(held) == 4
        assert notes[-1].startswith("4 of 4 validation rows have a question that is trained on as well: ")
    with pytest.raises(UserError, match=r"rows has the splits train, validation, but no test"):
        split("test", source=folder)
    with pytest.raises(UserError, match=r"data\.validation nothing\.jsonl is not a file or folder, and data\.source"):
        split("nothing.jsonl", source=folder)
    with pytest.raises(UserError, match=r"data\.validation val is not a file .* countdown is not a folder with such"):
        split("val")


def test_batches_of_a_micro_batch_and_every_row_once():
    """Held-out rows of all lengths: each row has the weight 1 in one batch."""
    tokenizer = Tokenizer.load(pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_tokenizer")
    model = ModelConfig.dense(
        vocab_size=len(problems.SYMBOLS), d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
    )

    def make(fmt="s1_plain", **data):
        settings = DataConfig(block_size=192, num_rows=50, **data)
        experiment = Experiment(model=model, data=settings, train=TrainConfig(batch_size=8, accumulation=2))
        return sources.make(experiment, tokenizer, chat.FORMATS[fmt], 1)

    made = make(validation="10")
    assert made.validation.num_steps == 3 and made.validation.num_rows == 4
    weights = sum(batch["weights"].sum() for batch in made.validation.iterate())
    np.testing.assert_allclose(weights, 10, rtol=1e-5)
    names = [name for step in range(3) for name in made.validation.names(step)]
    trained = {name for step in range(made.batches.steps_per_epoch) for name in made.batches.names(step)}
    assert len(set(names)) == 10 and len(trained) == 40 and not set(names) & trained
    assert make().validation is None
    control = make("countdown", validation="1", control="class")  # a row alone is neither short nor long
    assert control.validation.num_steps == 1
    with pytest.raises(UserError, match=r"data\.source countdown_corpus has no rows that could be held out"):
        corpus = DataConfig(source="countdown_corpus", validation="5", block_size=64)
        steps = TrainConfig(batch_size=2, steps=1)
        sources.make(Experiment(model=model, data=corpus, train=steps), tokenizer, chat.FORMATS["countdown_base"], 1)
