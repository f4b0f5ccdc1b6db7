"""50 steps of our trainer and of torch AdamW on transformers' model, or on PEFT's adapters: the same loss curve."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import MeshConfig
from s1jax.config.lora import OFF
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from tests.training import golden

FOLDER = pathlib.Path(__file__).parent


def tree(named: dict[str, np.ndarray]) -> dict:
    found: dict = {}
    for path, array in named.items():
        *folders, leaf = path.split("/")
        node = found
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(array)
    return found


@pytest.fixture(scope="module", params=["adamw", "lora"])
def ours(request) -> tuple[str, list[float]]:
    """Name and losses of a run."""
    params, frozen, lora, optimizer = tree(golden.weights()), [], OFF, golden.OPTIMIZER
    if request.param == "lora":
        frozen, params = [step_lib.Frozen(base=params)], tree(golden.adapters())
        lora, optimizer = golden.LORA, golden.LORA_OPTIMIZER
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optimizer_lib.make(optimizer, golden.MODEL, golden.STEPS, lora)
    abstract = step_lib.abstract_state(golden.MODEL, tx, mesh, "float32", lora)
    state = step_lib.init_state(params, tx, abstract)
    step = step_lib.make_step(golden.MODEL, golden.TRAIN, optimizer, golden.STEPS, tx, mesh, abstract, lora=lora)
    losses = []
    for _ in range(golden.STEPS):
        state, metrics = step(state, golden.batch(), *frozen)
        losses.append(float(metrics["loss"]))
    return request.param, losses


def test_same_curve_as_recorded(ours):
    name, losses = ours
    recorded = json.loads((FOLDER / f"golden_torch_{name}.json").read_text())["losses"]
    np.testing.assert_allclose(losses, recorded, rtol=1e-4)
    assert recorded[-1] < 0.7 * recorded[0], "a curve that hardly moves would prove nothing"


def test_same_curve_as_torch_here(ours):
    name, losses = ours
    for package in ("torch", "transformers", *(["peft"] if name == "lora" else [])):
        pytest.importorskip(package, reason=f"{package} is not installed; the recorded curve was compared")
    theirs = golden.peft_losses() if name == "lora" else golden.torch_losses()
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
