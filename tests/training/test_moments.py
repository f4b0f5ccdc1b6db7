"""Moments in 8 bits: the codes, what they lose, and a run with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import s1jax
from s1jax.config.experiment import MeshConfig
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import moments
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from tests.training import golden
from tests.training.test_golden import tree


def bitsandbytes_map(signed: bool) -> np.ndarray:
    """Means of the decades as bitsandbytes' `create_dynamic_map` has them, without its 0 and 1."""
    found = []
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1 if signed else 2 ** (decade + 1) + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        found += [*means, *(-means if signed else ())]
    return np.sort(found)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_bitsandbytes(signed):
    codes = np.arange(256, dtype=np.uint8)
    used = codes[(codes % 128 > 0) if signed else (codes > 0) & (codes < 255)]
    values = np.asarray(moments.decode(jnp.asarray(used), signed))
    np.testing.assert_allclose(np.sort(values), bitsandbytes_map(signed), rtol=1e-6)
    np.testing.assert_array_equal(moments.encode(jnp.asarray(values), signed), used)


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_lost(signed):
    rng = np.random.default_rng(0)
    x = (10.0 ** rng.uniform(-9, 2, (8, 3, 512))).astype(np.float32)
    if signed:
        x *= rng.choice([-1, 1], x.shape)
    packed = moments.pack(jnp.asarray(x), signed)
    assert packed["codes"].shape == x.shape and packed["scales"].shape == (8, 3, 2)
    back = np.asarray(moments.unpack(packed, signed))
    largest = np.repeat(np.abs(x).reshape(8, 3, 2, 256).max(-1), 256, -1).reshape(x.shape)
    relative, place = np.abs(back - x) / np.abs(x), np.abs(x) / largest
    for decade in range(7):  # below the largest of its block: half a part of the decade's lower end
        here = (place >= 10.0 ** -(decade + 1) * 1.02) & (place <= 10.0**-decade)
        count = 2 ** (6 - decade) * (1 if signed else 2)
        assert here.any() and relative[here].max() <= 0.47 / count * 10
    exact = place == 1
    np.testing.assert_allclose(back[exact], x[exact], rtol=1e-6)
    if not signed:
        assert (back[x > 0] > 0).all(), "a step divides by its root"
    zero = moments.pack(jnp.zeros((4096, 2)), signed)
    np.testing.assert_array_equal(moments.unpack(zero, signed), 0)


def test_small_arrays_stay_as_they_are():
    x = jnp.full((3, 5), 1.2345)
    np.testing.assert_array_equal(moments.pack(x, True), x)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Losses of 20 steps on the embedded task, by the type of the moments, and the states' bytes."""
    folder, found = tmp_path_factory.mktemp("moments"), {}
    for kind in ("float32", "int8"):
        settings = {
            "init_from": "package:countdown_base_quarter",
            "data": {"source": "countdown", "num_rows": 80, "block_size": 128, "too_long": "drop"},
            "train": {"batch_size": 8, "steps": 20, "compute_dtype": "float32", "remat": "none"},
            "optimizer": {"learning_rate": 1e-3, "moment_dtype": kind, "offload": True},
            "log": {"tensorboard": False},
        }
        losses, notes = list[float](), list[str]()
        note = lambda record, losses=losses: losses.append(record["loss"])  # noqa: E731
        s1jax.train(settings, folder / kind, s1jax.Callbacks(on_step=note, on_note=notes.append))
        assert sum("config.optimizer.offload is not used" in note for note in notes) == 1
        files = (folder / kind / "checkpoints" / "20" / "optimizer").rglob("*")
        found[kind] = np.array(losses), sum(file.stat().st_size for file in files if file.is_file())
    return found


def test_a_run_with_8_bit_moments_has_the_same_curve(runs):
    wide, narrow = runs["float32"][0], runs["int8"][0]
    assert wide[-5:].mean() < 0.9 * wide[0], "a curve that hardly moves would prove nothing"
    np.testing.assert_allclose(narrow, wide, rtol=0.03)
    np.testing.assert_allclose(narrow.mean(), wide.mean(), rtol=0.003)
    assert np.abs(narrow / wide - 1).max() > 1e-6, "they are other moments"
    assert runs["int8"][1] < 0.45 * runs["float32"][1]


def test_moments_in_the_memory_of_the_host_change_nothing(monkeypatch):
    """Where the devices are CPUs a run does not do so; their memory has the kinds of a GPU's host all the same."""
    monkeypatch.setattr(step_lib, "can_offload", lambda mesh: True)
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    params, found = tree(golden.weights()), []
    for offload in (False, True):
        optimizer = dataclasses.replace(golden.OPTIMIZER, offload=offload, warmup_fraction=0.0)
        tx = optimizer_lib.make(optimizer, golden.MODEL, 2)
        abstract = step_lib.abstract_state(golden.MODEL, tx, mesh, "float32", offload=offload)
        step = step_lib.make_step(golden.MODEL, golden.TRAIN, optimizer, 2, tx, mesh, abstract)
        state = step_lib.init_state(jax.tree.map(jnp.array, params), tx, abstract)
        for _ in range(2):
            state, _ = step(state, golden.batch())
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state)}
        assert kinds == {"pinned_host" if offload else "device"}
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}
        found.append(state)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
