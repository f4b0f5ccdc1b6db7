"""A run with adapters: resumption, merging on load, and the checkpoint that they belong to."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

import s1jax
from s1jax.checkpoint import store
from s1jax.config.lora import LoraConfig
from s1jax.errors import UserError

ASSETS = pathlib.Path(s1jax.__file__).parent / "assets"
pytestmark = pytest.mark.usefixtures("compile_once")


def settings(base: pathlib.Path, **lora) -> dict:
    return {
        "init_from": str(base),
        "data": {"source": "countdown", "num_rows": 10, "block_size": 192, "validation": "2"},
        "train": {"batch_size": 4, "steps": 4, "compute_dtype": "float32", "remat": "full", "attention": "xla"},
        "optimizer": {"learning_rate": 1e-2, "warmup_fraction": 0.0, "moment_dtype": "int8"},
        "checkpoint": {"every": 2, "keep": 3},
        "log": {"tensorboard": False},
        "lora": {"rank": 8, "base": "nf4", "rslora": True, "alpha": 8.0, **lora},
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint in a folder that the tests may change."""
    return shutil.copytree(ASSETS / "countdown_base_quarter", tmp_path_factory.mktemp("lora") / "base")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Workdir and summary of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("lora_run") / "whole"
    return workdir, s1jax.train(settings(base), workdir)


def leaves(path) -> list[np.ndarray]:
    return jax.tree.leaves(store.load_adapters(path)[0])


def test_the_loss_falls_and_only_adapters_are_saved(run):
    workdir, summary = run
    assert summary["validation_loss"] > 0 and summary["last_loss"] < summary["first_loss"]
    tree, info = store.load_adapters(workdir)
    assert sorted(tree) == ["layers"] and sorted(tree["layers"]["attention"]) == ["key", "out", "query", "value"]
    assert info.lora == LoraConfig(rank=8, alpha=8.0, rslora=True, base="nf4")
    # Of each of 4 layers: r (inputs + outputs) of q, k, v, o, gate, up, down.
    sizes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 192), (64, 192), (192, 64)]
    wanted = 4 * 8 * sum(map(sum, sizes))
    assert sum(leaf.size for leaf in leaves(workdir)) == summary["trained_params"] == wanted


def test_resumed_run_is_the_same_bit_for_bit(run, base, tmp_path):
    stopped = s1jax.train(settings(base), tmp_path / "w", s1jax.Callbacks(should_stop=lambda step: step == 2))
    assert stopped["stopped"]
    resumed = s1jax.train(settings(base), tmp_path / "w")
    for name in ("steps", "first_loss", "last_loss", "validation_loss", "tokens"):
        assert resumed[name] == run[1][name]
    for one, other in zip(leaves(tmp_path / "w"), leaves(run[0]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("host", [True, False])
def test_loading_merges(run, base, host):
    tree, _ = store.load_adapters(run[0])
    merged, plain = store.load_model(run[0], host=host).params, store.load_model(base, host=True).params
    scale = 8.0 / np.sqrt(8)
    for room, name in (("attention", "query"), ("attention", "out"), ("mlp", "down")):
        kernel, pair = plain["layers"][room][name]["kernel"], tree["layers"][room][name]
        for layer in range(4):
            a, b = pair["a"][layer].reshape(-1, 8), pair["b"][layer].reshape(8, -1)
            wanted = kernel[layer].astype(np.float64) + scale * (a.astype(np.float64) @ b).reshape(kernel[layer].shape)
            np.testing.assert_allclose(merged["layers"][room][name]["kernel"][layer], wanted, rtol=0, atol=1e-6)
            assert np.abs(wanted - kernel[layer]).max() > 1e-3
    np.testing.assert_array_equal(merged["embed"]["embedding"], plain["embed"]["embedding"])
    half = store.load_model(run[0], dtype="bfloat16", host=host).params["layers"]["mlp"]["down"]["kernel"]
    np.testing.assert_array_equal(
        np.float32(half), np.float32(merged["layers"]["mlp"]["down"]["kernel"].astype(half.dtype))
    )


def test_another_base_is_refused(run, base, tmp_path):
    moved = shutil.move(base, tmp_path / "moved")
    try:
        with pytest.raises(UserError, match=r"has adapters for .*base.* is not a folder.*--base=CKPT"):
            store.load_model(run[0])
        assert store.load_model(run[0], base=str(moved)).fingerprint
        shutil.copytree(ASSETS / "countdown_base_quarter_1", base)
        with pytest.raises(UserError, match="its adapters were trained for another checkpoint than"):
            store.load_model(run[0])
        with pytest.raises(UserError, match="which its adapters belong to; choose another --workdir"):
            s1jax.train(settings(base), run[0])
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.move(moved, base)


def test_other_lora_settings_are_another_run(run, base):
    with pytest.raises(UserError, match=r"lora\.alpha is 8\.0 there and 4\.0 here"):
        s1jax.train(settings(base, alpha=4.0), run[0])


def test_weights_have_no_adapters_to_load(base):
    with pytest.raises(UserError, match="has weights and no adapters"):
        store.load_adapters(base)
