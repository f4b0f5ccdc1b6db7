"""50 steps of our trainer and of torch AdamW on transformers' model: the same loss curve."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import MeshConfig
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from tests.training import golden

FILE = pathlib.Path(__file__).parent / "golden_torch_adamw.json"


@pytest.fixture(scope="module")
def ours() -> list[float]:
    params: dict = {}
    for path, array in golden.weights().items():
        *folders, leaf = path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(array)
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optimizer_lib.make(golden.OPTIMIZER, golden.MODEL, golden.STEPS)
    abstract = step_lib.abstract_state(golden.MODEL, tx, mesh, "float32")
    state = step_lib.init_state(params, tx, abstract)
    step = step_lib.make_step(golden.MODEL, golden.TRAIN, golden.OPTIMIZER, golden.STEPS, tx, mesh, abstract)
    losses = []
    for _ in range(golden.STEPS):
        state, metrics = step(state, golden.batch())
        losses.append(float(metrics["loss"]))
    return losses


def test_same_curve_as_recorded(ours):
    recorded = json.loads(FILE.read_text())["losses"]
    np.testing.assert_allclose(ours, recorded, rtol=1e-4)
    assert recorded[-1] < 0.7 * recorded[0], "a curve that hardly moves would prove nothing"


def test_same_curve_as_torch_here(ours):
    pytest.importorskip("torch", reason="torch is not installed; the recorded curve was compared")
    pytest.importorskip("transformers", reason="transformers is not installed; the recorded curve was compared")
    np.testing.assert_allclose(ours, golden.torch_losses(), rtol=1e-4)
