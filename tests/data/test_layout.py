"""Steps of packed rows from the number and the tokens of the rows: against the batches of rows of such lengths."""

import numpy as np
import pytest

from s1jax.config.experiment import DataConfig, Experiment, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data import layout
from s1jax.data.batches import Batches
from s1jax.data.packing import Example
from s1jax.errors import UserError

MODEL = ModelConfig.dense(vocab_size=64, d_model=16, mlp_dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8)


def experiment(train=None, **data):
    data = {"source": "rows.jsonl", "block_size": 64, "batching": "packed"} | data
    return Experiment(model=MODEL, data=DataConfig(**data), train=TrainConfig(**(train or {})))


@pytest.mark.parametrize(("count", "total", "longest"), [(1000, 4_700_000, 9109), (50, 1000, 64), (10, 300, 30.5)])
def test_lengths_have_the_sum_and_the_maximum(count, total, longest):
    made = layout.lengths(count, total, longest)
    assert len(made) == count and made.min() >= 1 and made.max() == np.ceil(longest)
    assert made.sum() == pytest.approx(total, rel=0.06)
    assert (np.diff(made) >= 0).all()


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"batch_size": 0, "batch_tokens": 256}])
@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 20}])
def test_layout_is_that_of_the_batches(size, length):
    found = layout.layout(experiment({**size, **length}), count=100, total=2000)
    made = layout.lengths(100, 2000, 40)
    examples = [Example(np.ones(n + 1, np.int32), np.ones(n + 1, bool), str(n)) for n in made]
    batches = Batches(examples, **size, **length, block_size=64, batching="packed")
    assert found.steps == batches.num_steps and found.rows == batches.num_rows
    per_epoch = batches.steps_per_epoch if "steps" in length else batches.num_steps / 3
    assert found.sequences == pytest.approx(100 / per_epoch)
    tokens = pairs = 0
    for step in range(batches.num_steps):
        batch = batches.batch(step)
        tokens += (batch["segment_ids"] > 0).sum()
        pairs += (batch["positions"] + 1)[batch["segment_ids"] > 0].sum()
    if "epochs" in length:
        assert found.tokens == pytest.approx(tokens / batches.num_steps)
        assert found.pairs == pytest.approx(pairs / batches.num_steps)


def test_what_is_known_of_s1k():
    """The paper's steps: 4.7 M tokens in about 16 sequences each."""
    recipe = experiment({"batch_size": 0, "batch_tokens": 81920}, source="s1k", block_size=10240)
    found = layout.layout(recipe)
    assert found.rows == 8 and 300 <= found.steps <= 330
    assert found.tokens * found.steps == pytest.approx(5 * 4.7e6, rel=0.01)
    assert layout.layout(experiment(source="s1k", batching="padded")) is None
    assert layout.layout(experiment()) is None


def test_rows_longer_than_the_block():
    settings = {"source": "s1k", "block_size": 8192}
    with pytest.raises(UserError, match=r"taken to have 9,109, more than data.block_size 8192; give a larger one, or"):
        layout.layout(experiment(**settings))
    cut = layout.layout(experiment({"epochs": 1}, **settings, too_long="truncate"))
    dropped = layout.layout(experiment({"epochs": 1}, **settings, too_long="drop"))
    assert dropped.tokens * dropped.steps < cut.tokens * cut.steps < 4.7e6
    with pytest.raises(UserError, match=r"10 rows of 5 tokens have 0.5 each"):
        layout.layout(experiment(), count=10, total=5)
    with pytest.raises(UserError, match=r"10 rows of 100,000 tokens have 10,000.0 each"):
        layout.layout(experiment(source="s1k"), count=10, total=1e5)
