"""Validation during a run, and the best checkpoint that it keeps."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from s1jax.checkpoint import store
from s1jax.config.experiment import Experiment, MeshConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import loop
from s1jax.training import step as step_lib
from s1jax.training.validation import Validation
from tests.training.test_loop import (
    EXPERIMENT,
    MODEL,
    STEPS,
    Rows,
    _events,
    metadata,
    never,
    records,
    run,
)

__all__ = ["metadata", "run"]  # fixtures
pytestmark = pytest.mark.usefixtures("compile_once")


class HeldOut(Rows):
    """Three batches that no training step has; of the last one half the rows are empty."""

    num_steps = 3

    def batch(self, step):
        batch = super().batch(100 + step)
        if step == 2:
            batch = {name: array * (np.arange(2) == 0)[:, None].astype(array.dtype) for name, array in batch.items()}
        return batch


def experiment(validate_every=1, best=True, **checkpoint) -> Experiment:
    return dataclasses.replace(
        EXPERIMENT,
        train=dataclasses.replace(EXPERIMENT.train, validate_every=validate_every),
        checkpoint=dataclasses.replace(EXPERIMENT.checkpoint, best=best, **checkpoint),
    )


def test_the_validation_loss_is_the_mean_over_all_batches():
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(lambda: decoder.init_params(MODEL, jax.random.key(0)))()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    measure = Validation(MODEL, EXPERIMENT.train, mesh, HeldOut(), abstract)
    gradients = jax.jit(step_lib.make_gradients(MODEL, EXPERIMENT.train, mesh))
    batches = [HeldOut().batch(step) for step in range(3)]
    losses = [float(gradients(params, batch)[0][0]) for batch in batches]
    weights = [float(batch["weights"].sum()) for batch in batches]
    assert len(set(weights)) == 2
    np.testing.assert_allclose(measure(params), np.average(losses, weights=weights), rtol=1e-6)
    assert measure(params) == measure(params)


@pytest.fixture
def losses(monkeypatch):
    """Lets the validation losses be those of a list, one after the other."""

    def give(values):
        values = iter(values)
        monkeypatch.setattr(loop.Validation, "__call__", lambda self, params, base=None: next(values))

    return give


def steps(workdir):
    return store.finished_steps(workdir)


def test_the_best_checkpoint_is_kept_however_old(run, tmp_path, losses):
    """Saved although checkpoint.every is 4, named at the end, and a checkpoint by its path."""
    losses([5.0, 3.0, 4.0, 3.5, 3.0, 6.0])
    told = []
    summary = run(
        tmp_path / "w", validation=HeldOut(), experiment=experiment(keep=1) , on_phase=told.append,
        on_step=lambda record: told.append(record["validation_loss"]),
    )  # fmt: skip
    assert steps(tmp_path / "w") == [2, 6]
    assert summary["best_validation_loss"] == 3.0 and summary["validation_loss"] == 6.0
    assert summary["best_checkpoint"] == str(tmp_path / "w" / "checkpoints" / "2")
    model = store.load_model(summary["best_checkpoint"])
    assert model.provenance["step"] == 2 and model.provenance["validation_loss"] == 3.0
    assert [line["validation_loss"] for line in records(tmp_path / "w")] == [5.0, 3.0, 4.0, 3.5, 3.0, 6.0]
    assert told[told.index("validating") :][:3] == ["validating", "training", 5.0]
    (event, *_) = [event for event in _events(tmp_path / "w" / "tensorboard") if event.summary.value]
    assert {value.tag: value.simple_value for value in event.summary.value}["validation/loss"] == 5.0


def test_the_best_of_a_run_that_was_stopped_is_known_to_the_next_process(run, tmp_path, losses):
    losses([5.0, 3.0, 4.0, 3.5, 3.2, 6.0])
    told = {"validation": HeldOut(), "experiment": experiment(keep=1)}
    run(tmp_path / "w", should_stop=lambda step: step == 3, **told)
    assert steps(tmp_path / "w") == [2, 3]
    shutil.copytree(tmp_path / "w", tmp_path / "damaged")
    assert run(tmp_path / "w", make_params=never, **told)["best_validation_loss"] == 3.0
    assert steps(tmp_path / "w") == [2, 6]
    (tmp_path / "damaged" / "checkpoints" / "2" / "s1jax.json").write_text("")
    losses([3.5, 3.2, 6.0])
    notes: list[str] = []
    assert run(tmp_path / "damaged", on_note=notes.append, **told)["best_validation_loss"] == 3.2
    assert "s1jax.json has 0 bytes" in notes[0] and notes[0].endswith("Its validation loss is not known.")


def test_validation_changes_nothing_of_the_training(run, tmp_path):
    """Measured for real, after step 4 and at the end; without best, checkpoints are saved as they were."""
    plain = run(tmp_path / "plain", experiment=experiment(best=False, every=0))
    summary = run(tmp_path / "w", validation=HeldOut(), experiment=experiment(4, best=False))
    ours, theirs = records(tmp_path / "w"), records(tmp_path / "plain")
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert [line["step"] for line in ours if "validation_loss" in line] == [4, STEPS]
    assert steps(tmp_path / "w") == [4, 6] and "best_checkpoint" not in summary
    assert summary["validation_loss"] == ours[-1]["validation_loss"] > 0 and "validation_loss" not in plain
    only_last = experiment(0, best=False, every=0)
    run(tmp_path / "last", validation=HeldOut(), experiment=only_last)
    assert [line["step"] for line in records(tmp_path / "last") if "validation_loss" in line] == [STEPS]
    assert records(tmp_path / "last")[-1]["validation_loss"] == ours[-1]["validation_loss"]


def test_a_validation_loss_that_is_not_finite_ends_the_run(run, tmp_path, losses):
    losses([5.0, float("nan")])
    with pytest.raises(UserError, match=r"step 2: the validation loss is nan; look at the rows of data\.validation"):
        run(tmp_path / "w", validation=HeldOut(), experiment=experiment())
    assert steps(tmp_path / "w") == [1]
    assert json.loads((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1
