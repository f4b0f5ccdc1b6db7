"""Mesh and sharding: 8 fake devices give what one device gives; sizes that do not divide are told."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from s1jax.config.experiment import DataConfig, Experiment, MeshConfig, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ModelConfig.dense(vocab_size=30, d_model=12, mlp_dim=20, num_layers=1, num_heads=6, num_kv_heads=3, head_dim=8)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    command = [sys.executable, "tests/parallel/fake_devices.py", str(tmp_path_factory.mktemp("fake"))]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_meshes_give_the_single_device_loss_and_gradients(results):
    """Three shapes of the mesh, two with experts, one of them DeepSeek-V3, two with every rule of dense layers.

    S1JAX_ALL_MESHES=1 tries all twenty.
    """
    assert len(results["compare"]) == (20 if os.environ.get("S1JAX_ALL_MESHES") else 7)
    for case in results["compare"]:
        assert case["loss"] < 1e-5 and case["gradients"] < 1e-5, case
        assert case["size"] > 0.01, case


def test_meshes_give_the_single_device_loss_between_student_and_teacher(results):
    assert len(results["distillation"]) == 3
    for case in results["distillation"]:
        assert case["worst"] < 5e-6, case


def test_no_device_computes_what_another_one_computes(results):
    """Where rows and tokens are both split, B and T put together had every device compute whole rows."""
    by_rows, by_rows_in_parts, by_both, by_both_in_parts = results["operations"]
    assert by_both < 1.1 * by_rows and by_both_in_parts < 1.1 * by_rows_in_parts, results["operations"]


def test_key_heads_that_do_not_divide(results):
    assert len(results["attention"]) == 4 and max(results["attention"]) < 1e-5


def test_weights_and_moments_are_sharded(results):
    """On (1, 2, 2, 2) a device holds an eighth of the matrices; norms and biases are small."""
    for name, share in results["shards"].items():
        assert share < 0.15, name


def test_bfloat16_weights_are_rounded_alike_on_every_mesh(results):
    assert results["rounding"]


def test_checkpoints_move_between_meshes(results):
    assert results["checkpoints"] == [True] * 6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (MeshConfig(3, 1), "mesh.data=3, mesh.fsdp=1, mesh.sequence=1, mesh.tensor=1 does not divide the 1 devices"),
        (MeshConfig(2, -1), "does not divide the 1 devices"),
        (MeshConfig(-1, -1), "at most one is -1"),
        (MeshConfig(1, 1, 0), "axes are positive"),
    ],
)
def test_mesh_that_does_not_divide_the_devices(asked, message):
    with pytest.raises(UserError, match=message):
        mesh_lib.make_mesh(asked, jax.devices()[:1])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 1, 1), "mesh.fsdp = 8 does not divide .* embed axis of 12"),
        ((1, 4, 2, 1), r"mesh.fsdp \* mesh.sequence = 8 does not divide .* embed axis of 12"),
        ((1, 1, 1, 4), "mesh.tensor = 4 does not divide .* vocab axis of 30"),
    ],
)
def test_model_that_does_not_divide_the_mesh(shape, message):
    mesh = jax.sharding.AbstractMesh(shape, mesh_lib.AXES)
    with pytest.raises(UserError, match=message):
        sharding.param_shardings(MODEL, mesh)


def test_two_axes_of_a_weight_along_one_of_the_mesh(monkeypatch):
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 1), mesh_lib.AXES)
    monkeypatch.setitem(sharding.TABLE, "mlp", ("fsdp",))
    with pytest.raises(
        UserError, match=r"TABLE puts layers/mlp/\w+/kernel's axes \w+ and \w+ along mesh\.fsdp both; move"
    ):
        sharding.param_shardings(MODEL, mesh)


@pytest.mark.parametrize("source", ["countdown", "countdown_corpus"])
def test_attention_that_knows_no_segments_never_gets_any(source):
    """The corpus packs rows whatever data.batching says."""
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    train = TrainConfig(attention="auto", compute_dtype="bfloat16")
    experiment = Experiment(model=MODEL, data=DataConfig(source=source), train=train)
    chosen, _ = parallel_ops.choose_attention(experiment, MODEL, mesh, "gpu")
    assert chosen.train.attention == ("flash" if source == "countdown_corpus" else "cudnn")


@pytest.mark.parametrize(
    ("shape", "rows", "length", "message"),
    [
        ((2, 2, 1, 1), 6, 3, r"the batch has 6 rows, which mesh.data \* mesh.fsdp = 4 does not divide"),
        ((1, 2, 1, 1), 3, 3, "3 rows, which mesh.fsdp = 2 does not divide"),
        ((1, 1, 4, 1), 1, 12, r"rows of 12 ids, which twice mesh.sequence = 4 does not divide; .* a multiple of 8"),
    ],
)
def test_batch_that_does_not_divide_the_mesh(shape, rows, length, message):
    mesh = jax.sharding.AbstractMesh(shape, mesh_lib.AXES)
    with pytest.raises(UserError, match=message):
        sharding.put_batch({"tokens": np.zeros((rows, length), np.int32)}, mesh)


def test_key_heads_lie_along_tensor_where_they_divide():
    model = ModelConfig.dense(**{**MODEL.flat(), "mlp_dim": 24})
    for tensor, along in ((3, "tensor"), (2, None)):
        mesh = jax.sharding.AbstractMesh((1, 1, 1, tensor), mesh_lib.AXES)
        spec = sharding.param_shardings(model, mesh)["layers"]["attention"]["key"]["kernel"].spec
        assert spec[2] == along


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_every_device_attends_to_as_many_tokens(shards):
    places = sharding.places(48, shards)
    assert sorted(places.ravel()) == list(range(48))
    sums = (places + 1).sum(axis=1)
    assert np.all(sums == sums[0])


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs of a device, in a process that needn't be there."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    client: object = None


def shares(monkeypatch, owners, shape):
    """The share of every process where device i belongs to process owners[i]."""
    devices = np.array([Device(i, process) for i, process in enumerate(owners)], object).reshape(shape)
    monkeypatch.setattr(jax, "process_count", lambda: len(set(owners)))
    found = []
    for process in sorted(set(owners)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(sharding.row_share(jax.sharding.Mesh(devices, mesh_lib.AXES)))
    return found


@pytest.mark.parametrize(
    ("owners", "shape", "expected"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], (1, 8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([0, 0, 1, 1, 2, 2, 3, 3], (2, 1, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 0, 1, 1], (1, 1, 2, 2), [(0, 1), (0, 1)]),
        ([0, 1, 0, 1, 0, 1, 0, 1], (2, 2, 1, 2), [(0, 1), (0, 1)]),  # every process has a device of every row
        ([0, 1, 0, 1, 2, 3, 2, 3], (8, 1, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),  # rows that don't follow each other
    ],
)
def test_the_rows_that_a_process_reads(monkeypatch, owners, shape, expected):
    assert shares(monkeypatch, owners, shape) == expected


def test_processes_that_would_share_a_part_of_their_rows(monkeypatch):
    with pytest.raises(UserError, match=r"mesh.sequence=1, mesh.tensor=3: some processes would share a part"):
        shares(monkeypatch, [0, 0, 1, 1, 2, 2], (1, 2, 1, 3))


def test_every_logical_axis_is_in_the_table():
    axes = jax.tree.leaves(decoder.logical_axes(MODEL), is_leaf=lambda value: isinstance(value, tuple))
    assert {name for names in axes for name in names} <= set(sharding.TABLE)
    assert {axis for along in sharding.TABLE.values() for axis in along} <= set(mesh_lib.AXES)
