"""Where a compiler is installed: how collectives of the train step run on machines that aren't here."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from s1jax.config.experiment import MeshConfig
from s1jax.parallel import mesh as mesh_lib
from s1jax.plan import targets

WEIGHTS = 2 * 357_897_088  # bytes of the layers' matrices; a gather makes them whole
HIDDEN = 2 * 8 * 1024 * 896  # of all rows: the loss has one chunk
ROOT = pathlib.Path(__file__).resolve().parents[2]


def _plan(tmp_path, target, rows=8):
    """Qwen2.5-0.5B's own width and vocabulary; rows are short, which changes no collective."""
    out = tmp_path / "plan.json"
    batch = ["--config.data.block_size=1024", f"--config.train.batch_size={rows}"]
    batch += ["--config.data.batching=padded", "--config.train.batch_tokens=0"]
    settings = [*batch, f"--out={out}", f"--target={target}"]
    command = ["-m", "launch.plan", "--config=configs/s1_qwen2p5_0p5b.py", "--model=qwen2p5_0p5b", *settings]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def _check_most_run_beside_products(plan):
    """What is left are the first weights of a layer, the last gradients, and what the loss gathers and scatters."""
    collectives, exposed = plan["collectives"], plan["exposed"]
    assert plan["synchronous_gathers"] == 0
    assert exposed.get("all-gather", 0) < 0.15 * collectives["all-gather"]
    assert exposed.get("reduce-scatter", 0) < 0.3 * WEIGHTS + HIDDEN


def _check_bytes(plan):
    """Two gathers and one reduction of the parameters in bfloat16, and what the loss moves."""
    assert 2 * WEIGHTS < plan["collectives"]["all-gather"] < 2.1 * WEIGHTS + 4 * HIDDEN


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="the GPU compiler is not installed")
def test_on_gpus_gathers_and_reduce_scatters_run_beside_products(tmp_path):
    plan = _plan(tmp_path, "h100:8")
    _check_bytes(plan)
    assert plan["collectives"]["reduce-scatter"] > 2 * 357_000_000
    assert plan["collectives"]["all-reduce"] < 0.01 * plan["collectives"]["reduce-scatter"]
    _check_most_run_beside_products(plan)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
@pytest.mark.parametrize("target", ["v5p:2x2x2", "v6e:2x4"])
def test_on_tpus_gathers_of_parameters_and_reduce_scatters_run_beside_products(tmp_path, target):
    plan = _plan(tmp_path, target)
    _check_bytes(plan)
    assert plan["collectives"]["reduce-scatter"] > 2 * 357_000_000
    assert plan["collectives"]["all-reduce"] < 0.01 * plan["collectives"]["reduce-scatter"]
    _check_most_run_beside_products(plan)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
def test_gathers_in_a_cube_of_tpus_are_no_all_reduces(tmp_path):
    collectives = _plan(tmp_path, "v5p:4x4x4", rows=64)["collectives"]
    assert collectives["all-reduce"] < 0.1 * collectives["all-gather"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
@pytest.mark.parametrize("shape", [{"sequence": 2}, {"data": 2, "tensor": 2}])
def test_two_axes_of_the_mesh_along_one_of_the_slice(shape):
    """The last here: this process holds libtpu from now on, and no other gets it."""
    devices = targets.devices(targets.parse("v6e:4x4"))
    mesh = mesh_lib.make_mesh(MeshConfig(**shape), devices)
    assert sorted(device.id for device in mesh.devices.flat) == list(range(16))
    assert {axis: mesh.shape[axis] for axis in shape} == shape
