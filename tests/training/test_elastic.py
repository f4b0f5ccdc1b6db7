"""A distillation that moves between meshes goes on at the exact step, with the same rows, state and teacher."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from s1jax.checkpoint import store

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "tests/training/elastic.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["", "_adapters"])
def test_8_to_4_to_8_devices_is_the_run_on_one(folder, what):
    """Stopped after steps 2 and 5; packing makes rows for 1, 8, 2 and 8 shards of the batch. Adapters: 1, 4 and 1."""
    moved, whole = records(folder / f"moved{what}"), records(folder / f"whole{what}")
    assert [line["step"] for line in moved] == [line["step"] for line in whole] == list(range(1, 10))
    for name in ("loss", "cross_entropy", "distillation", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in moved], [r[name] for r in whole], rtol=0, atol=1e-5)
    for name in ("tokens", "supervised_tokens", "learning_rate"):
        assert [line[name] for line in moved] == [line[name] for line in whole]
    assert np.ptp([line["loss"] for line in whole]) > 0.1, "losses that tell steps apart"


def test_the_adapters_at_the_end_are_the_same(folder):
    trees = [store.load_adapters(folder / name)[0] for name in ("moved_adapters", "whole_adapters")]
    for one, other in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
        assert np.abs(one).max() > 1e-3


def test_the_weights_at_the_end_are_the_same(folder):
    ours, theirs = (jax.tree.leaves(store.load_model(folder / name, host=True).params) for name in ("moved", "whole"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
