"""Where the numbers of a run go besides metrics.jsonl."""

import json
import sys
import types

import pytest

from s1jax.config.experiment import Experiment, LogConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.training import trackers

MODEL = ModelConfig.dense(vocab_size=128, d_model=8, mlp_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
EXPERIMENT = Experiment(model=MODEL, log=LogConfig(wandb="s1"))
RECORD = {"step": 3, "loss": 1.5, "mfu": None, "validation_loss": 2.0}


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: what is called is listed."""
    calls: list = []
    run = types.SimpleNamespace(
        define_metric=lambda *a, **k: calls.append(("define", a, k)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **settings: calls.append(("init", settings)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_gets_the_numbers_and_a_resumed_run_goes_on(wandb, tmp_path):
    tracker = trackers.WeightsAndBiases(tmp_path, EXPERIMENT)
    tracker.add(RECORD)
    tracker.close()
    (_, settings), *defined, logged, finished = wandb
    assert settings["project"] == "s1" and settings["name"] == tmp_path.name and settings["dir"] == str(tmp_path)
    assert settings["resume"] == "allow" and settings["config"]["model"]["d_model"] == 8
    assert ("define", ("*",), {"step_metric": "train/global_step"}) in defined
    assert logged == ("log", {"train/loss": 1.5, "validation/loss": 2.0, "train/global_step": 3})
    assert finished == ("finish",)
    trackers.WeightsAndBiases(tmp_path, EXPERIMENT)
    assert wandb[-3][1]["id"] == settings["id"] == json.loads((tmp_path / "wandb.json").read_text())["s1"]
    trackers.WeightsAndBiases(tmp_path, Experiment(model=MODEL, log=LogConfig(wandb="other")))
    assert wandb[-3][1]["id"] != settings["id"]
    (tmp_path / "wandb.json").write_text("[]")
    with pytest.raises(UserError, match=r"wandb\.json is not the JSON of .*; remove it\."):
        trackers.WeightsAndBiases(tmp_path, EXPERIMENT)


def test_wandb_that_does_not_begin_is_one_sentence(wandb, tmp_path, monkeypatch):
    def init(**settings):
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(UserError, match=r"config\.log\.wandb=s1: .* api_key not configured \(no-tty\)\); run"):
        trackers.WeightsAndBiases(tmp_path, EXPERIMENT)


def test_packages_that_are_not_installed_are_said_before_the_run(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'config\.log\.wandb=s1 needs wandb, .* "s1jax\[wandb\]" brings it'):
        trackers.check(LogConfig(wandb="s1"))
    (note,) = trackers.check(LogConfig())
    assert note.startswith("tensorboardX is not installed")
    assert trackers.check(LogConfig(tensorboard=False)) == []
