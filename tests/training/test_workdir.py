"""The folder of a run: one process at a time, and the run that is in it."""

import dataclasses
import errno
import json
import pathlib
import shutil

import pytest

from s1jax.config import presets
from s1jax.config.experiment import CheckpointConfig, CostConfig, LogConfig, MeshConfig, OptimizerConfig
from s1jax.errors import UserError
from s1jax.training import workdir as workdir_lib
from tests.training.test_loop import EXPERIMENT, claim


def test_a_workdir_is_for_one_process_at_a_time(tmp_path, monkeypatch):
    with workdir_lib.claim(tmp_path / "w", EXPERIMENT):
        with pytest.raises(UserError, match=r"w is being trained in by another process; .* choose another --workdir"):
            claim(tmp_path / "w", EXPERIMENT)
        with pytest.raises(UserError, match="by another process"):  # nor does it touch the other's config.json
            claim(tmp_path / "w", dataclasses.replace(EXPERIMENT, seed=1))

        def unsupported(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        with monkeypatch.context() as patched:
            patched.setattr("fcntl.flock", unsupported)
            claim(tmp_path / "w", EXPERIMENT)
    claim(tmp_path / "w", EXPERIMENT)


def test_changed_rows_are_noticed_once_a_step_was_taken(tmp_path):
    file = tmp_path / "w" / "rows.sha256"
    claim(tmp_path / "w", EXPERIMENT)
    assert not file.exists()
    for rows in ("one", "two"):  # a run of an earlier version, and one that has not begun
        claim(tmp_path / "w", EXPERIMENT, rows)
        assert file.read_text().strip() == rows
    (tmp_path / "w" / "metrics.jsonl").touch()
    claim(tmp_path / "w", EXPERIMENT, "two")
    with pytest.raises(UserError, match=r"rows of data\.source countdown changed since .*; choose another --workdir"):
        claim(tmp_path / "w", EXPERIMENT, "three")
    file.unlink()
    claim(tmp_path / "w", EXPERIMENT, "three")
    assert file.read_text().strip() == "three"


def test_a_workdir_of_another_run(tmp_path):
    claim(tmp_path / "w", EXPERIMENT)
    free = dataclasses.replace(
        EXPERIMENT,
        mesh=MeshConfig(data=2),
        cost=CostConfig(2.0),
        checkpoint=CheckpointConfig(every=7),
        train=dataclasses.replace(EXPERIMENT.train, remat="full", accumulation=2, loss_chunk=7, attention="chunked"),
    )
    claim(tmp_path / "w", free)
    other = dataclasses.replace(EXPERIMENT, optimizer=OptimizerConfig(learning_rate=3.0), seed=4)
    message = (
        "holds another run: optimizer.learning_rate is 0.01 there and 3.0 here; seed is 0 there and 4 here. Choose"
    )
    with pytest.raises(UserError, match=message):
        claim(tmp_path / "w", other)
    pretrained = dataclasses.replace(EXPERIMENT, model=None, init_from="package:countdown_base")
    with pytest.raises(UserError, match=r"init_from is '' there and 'package:countdown_base' here; model.* more"):
        claim(tmp_path / "w", pretrained)


def test_a_workdir_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "file", EXPERIMENT)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"without its config\.json"):
        claim(tmp_path / "w", EXPERIMENT)
    (tmp_path / "w" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        claim(tmp_path / "w", EXPERIMENT)


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its config.json lacks the settings that were added since; they had their defaults' meaning."""
    claim(tmp_path / "w", EXPERIMENT)
    file = tmp_path / "w" / "config.json"
    there = json.loads(file.read_text())
    del there["delimiters"], there["data"]["control"]
    file.write_text(json.dumps(there))
    claim(tmp_path / "w", EXPERIMENT)
    data = dataclasses.replace(EXPERIMENT.data, control="token")
    with pytest.raises(UserError, match=r"data\.control is '' there and 'token' here"):
        claim(tmp_path / "w", dataclasses.replace(EXPERIMENT, data=data))


def test_a_model_in_the_flat_form_of_an_earlier_version_is_the_same_model(tmp_path):
    shape = dict(vocab_size=64, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
    settings = {"model": shape, "tokenizer": "t"}
    claim(tmp_path / "w", presets.experiment(settings))
    file = tmp_path / "w" / "config.json"
    there = json.loads(file.read_text())
    assert there["model"]["groups"] and there["model"]["family"] == "llama"
    file.write_text(json.dumps({**there, "model": {**shape, "qkv_bias": False}}))
    claim(tmp_path / "w", presets.experiment(settings))
    with pytest.raises(UserError, match=r"model\.mlp_dim is 8 there and 16 here"):
        claim(tmp_path / "w", presets.experiment({**settings, "model": {**shape, "mlp_dim": 16}}))


def test_the_packaged_tokenizer_has_two_names(tmp_path):
    """A run of configs/countdown_base.py that an earlier version began goes on."""
    shape = dict(vocab_size=64, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
    old, new, other = (
        presets.experiment({"model": shape, "tokenizer": name})
        for name in ("s1jax/assets/countdown_tokenizer", "package:countdown_tokenizer", "elsewhere")
    )
    claim(tmp_path / "w", old)
    claim(tmp_path / "w", new)
    with pytest.raises(UserError, match="tokenizer is 'package:countdown_tokenizer' there and 'elsewhere' here"):
        claim(tmp_path / "w", other)


def test_the_config_json_of_an_earlier_version_is_understood(tmp_path):
    """Written by commit 3831374, before data.validation, checkpoint.best and log."""
    (tmp_path / "w").mkdir()
    file = pathlib.Path(__file__).parent / "config_of_an_earlier_version.json"
    shutil.copy(file, tmp_path / "w" / "config.json")
    experiment = presets.experiment(json.loads(file.read_text()))
    claim(tmp_path / "w", experiment)
    log = LogConfig(tensorboard=False, wandb="s1")
    claim(tmp_path / "w", dataclasses.replace(experiment, log=log, checkpoint=CheckpointConfig(best=False)))
    data = dataclasses.replace(experiment.data, validation="2")
    with pytest.raises(UserError, match=r"data\.validation is '' there and '2' here"):
        claim(tmp_path / "w", dataclasses.replace(experiment, data=data))
