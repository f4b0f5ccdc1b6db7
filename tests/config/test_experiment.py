"""Settings that do not go together: refused by name where something else would be trained, else said."""

import dataclasses

import pytest

from s1jax.config import experiment as experiment_lib
from s1jax.config import schema
from s1jax.config.experiment import Experiment
from s1jax.config.model import ModelConfig
from s1jax.config.schema import from_dict
from s1jax.errors import UserError

SHAPE = schema.to_dict(
    ModelConfig.dense(vocab_size=128, d_model=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8)
)


def experiment(**settings) -> Experiment:
    """From settings named like "data__source"; from a checkpoint unless they have a model."""
    tree = {} if "model" in settings else {"init_from": "package:countdown_base"}
    for name, value in settings.items():
        group, _, field = name.rpartition("__")
        (tree.setdefault(group, {}) if group else tree)[field] = value
    return from_dict(Experiment, tree)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "folder"}, r"config.tokenizer 'folder' is not used with config.init_from.*leave it empty"),
        ({"train__batch_tokens": 65536}, "train.batch_size is 16 and train.batch_tokens is 65536; give exactly one"),
        ({"train__batch_size": 0}, "train.batch_size is 0 and train.batch_tokens is 0; give exactly one"),
        (
            {"train__batch_size": 0, "train__batch_tokens": 65536},
            "train.batch_tokens 65536 needs data.batching=packed",
        ),
        (
            {"train__batch_size": 0, "train__batch_tokens": 100, "data__batching": "packed"},
            "train.batch_tokens 100 is less than one row of data.block_size 32768; give at least 32768",
        ),
        ({"train__steps": 10**12}, r"train.steps is 1,000,000,000,000; it must lie below 2\*\*31"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=message):
        experiment(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"train__steps": 3}, []),
        ({"train__epochs": 3}, []),
        ({"data__traces": "gemini", "data__source": "s1k_1_1"}, []),
        ({"data__num_rows": 5, "data__batching": "packed", "data__too_long": "drop"}, []),
        ({"seed": 7, "model": SHAPE}, []),
        ({"train__steps": 3, "train__epochs": 2}, ["config.train.epochs=2 is not used: config.train.steps=3 says"]),
        ({"seed": 7}, ["config.seed=7 is not used: it is of random weights, and config.init_from has weights"]),
        (
            {"data__traces": "gemini", "data__source": "countdown"},
            ["config.data.traces=gemini is not used: the rows of countdown have one trace each"],
        ),
        (
            {
                "data__source": "countdown_corpus", "data__num_rows": 5, "data__batching": "packed",
                "data__too_long": "drop",
            },
            [
                f"config.data.{setting} is not used: countdown_corpus is endless text in packed rows"
                for setting in ("num_rows=5", "batching=packed", "too_long=drop", "weighting=sequence")
            ],
        ),
        ({"data__source": "countdown_corpus", "data__weighting": "token"}, []),
    ],
)  # fmt: skip
def test_said(settings, said):
    found = experiment_lib.unused(experiment(**settings))
    assert len(found) == len(said)
    assert all(sentence.startswith(begins) for sentence, begins in zip(found, said, strict=True)), found


def test_every_setting_has_been_looked_at():
    """A new setting has to be added here, by whoever has decided what it means beside each of the others."""
    leaves = {
        f"{group.name}.{field.name}" if dataclasses.is_dataclass(group.default) else group.name
        for group in dataclasses.fields(Experiment)
        for field in (dataclasses.fields(group.default) if dataclasses.is_dataclass(group.default) else [group])
    }
    # Beside: refused or said.
    conditional = {
        "init_from": "model", "model": "init_from", "tokenizer": "init_from", "chat": "model", "seed": "init_from",
        "data.traces": "data.source", "data.num_rows": "data.source", "data.batching": "train.batch_tokens",
        "data.too_long": "data.source", "data.weighting": "data.source",
        "data.control": "data.source", "train.validate_every": "data.validation",
            "checkpoint.best": "data.validation", "train.batch_size": "train.batch_tokens",
        "train.batch_tokens": "train.batch_size", "train.epochs": "train.steps", "train.steps": "train.epochs",
        "train.attention": "data.batching", "train.mlp_parts": "mesh.tensor",
        "optimizer.moment_dtype": "optimizer.b2", "distil.teacher": "distil.weight", "distil.loss": "distil.teacher",
        "distil.targets": "distil.teacher", "distil.on_policy": "distil.teacher", "distil.rollout": "distil.on_policy",
        "distil.on_policy_loss": "distil.on_policy",
        "distil.beta": "distil.loss", "distil.alpha": "distil.loss", "distil.weight": "distil.teacher",
        "distil.temperature": "distil.teacher", "data.loss_on": "data.source",
        "optimizer.name": "lora.rank", "lora.rank": "init_from", "lora.alpha": "lora.rank",
        "lora.targets": "lora.rank", "lora.rslora": "lora.rank", "lora.base": "lora.rank",
        "optimizer.offload": "mesh.data", "train.router_aux_loss": "model.groups",
    }  # fmt: skip
    always = {
        "delimiters.think_start", "delimiters.think_end", "data.source", "data.block_size", "data.seed",
         "train.accumulation", "train.param_dtype", "train.compute_dtype", "train.remat",
        "train.loss_chunk", "optimizer.learning_rate", "optimizer.b1", "optimizer.b2",
        "optimizer.eps", "optimizer.weight_decay", "optimizer.warmup_fraction", "optimizer.schedule",
        "optimizer.clip_norm", "mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor", "checkpoint.every",
        "checkpoint.keep", "cost.per_device_hour", "data.validation", "log.wandb", "log.tensorboard",
    }  # fmt: skip
    assert leaves == set(conditional) | always and not set(conditional) & always
