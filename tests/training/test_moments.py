"""Moments in 8 bits: the codes, what they lose, and a run with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import s1jax
from s1jax.config.experiment import MeshConfig, OptimizerConfig
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import moments
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from tests.training import golden
from tests.training.test_golden import tree


def bitsandbytes_map(signed: bool) -> np.ndarray:
    """The values that bitsandbytes' `create_dynamic_map` has, float64 [256]."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1 if signed else 2 ** (decade + 1) + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        found += [*means, *(-means if signed else ())]
    return np.sort(found)


def bitsandbytes(x: np.ndarray, signed: bool) -> np.ndarray:
    """What is left of a moment after bitsandbytes: blocks of 256 neighbours, and the nearest value of the map."""
    table = bitsandbytes_map(signed)
    blocks = np.pad(x.ravel(), (0, -x.size % 256)).reshape(-1, 256)
    scales = np.maximum(np.abs(blocks).max(1, keepdims=True), 1e-30)
    place = np.searchsorted((table[:-1] + table[1:]) / 2, blocks / scales)
    return (table[place] * scales).ravel()[: x.size].reshape(x.shape)


@pytest.mark.parametrize("signed", [True, False])
def test_codes(signed):
    codes = np.arange(-127, 128).astype(np.int8) if signed else np.arange(256).astype(np.uint8)
    values = moments.decode(jnp.asarray(codes), signed)
    power = (np.float64(codes) / 127) ** 3 if signed else (np.float64(codes) / 255) ** 4
    np.testing.assert_allclose(values, power, rtol=1e-6)
    np.testing.assert_array_equal(moments.encode(values, signed), codes)
    assert moments.encode(values, signed).dtype == codes.dtype


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
    power, count = (3, 127) if signed else (4, 255)
    root = (np.abs(x) / largest) ** (1 / power)
    half = 0.5001 / count if signed else np.where(root < 1 / count, 1 / count, 0.5001 / count)  # never zero
    assert np.all(np.abs(np.abs(back) / largest) ** (1 / power) <= root + half)
    assert np.all(np.abs(np.abs(back) / largest) ** (1 / power) >= root - half)
    assert np.all(back * x >= 0)
    np.testing.assert_allclose(back[root == 1], x[root == 1], rtol=1e-6)
    if not signed:
        assert (back > 0).all(), "a step divides by its root"
    zero = moments.pack(jnp.zeros((4096, 2)), signed)
    np.testing.assert_array_equal(moments.unpack(zero, signed), 0)


def test_small_arrays_stay_as_they_are():
    x = jnp.full((3, 5), 1.2345)
    np.testing.assert_array_equal(moments.pack(x, True), x)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Losses of 20 steps on the embedded task, by the type of the moments, the states' bytes, and the gradients of the
    run with float32 moments."""
    folder, found, gradients = tmp_path_factory.mktemp("moments"), {}, []
    clip = optimizer_lib.clip

    def keep(grads, norm, largest):
        grads = clip(grads, norm, largest)
        jax.debug.callback(lambda tree: gradients.append(jax.tree.map(np.array, tree)), grads, ordered=True)
        return grads

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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer_lib, "clip", keep if kind == "float32" else clip)
            s1jax.train(settings, folder / kind, s1jax.Callbacks(on_step=note, on_note=notes.append))
        assert sum("config.optimizer.offload is not used" in note for note in notes) == 1
        files = (folder / kind / "checkpoints" / "20" / "optimizer").rglob("*")
        found[kind] = np.array(losses), sum(file.stat().st_size for file in files if file.is_file())
    return found | {"gradients": gradients}


def test_a_run_with_8_bit_moments_has_the_same_curve(runs):
    wide, narrow = runs["float32"][0], runs["int8"][0]
    assert wide[-5:].mean() < 0.9 * wide[0], "a curve that hardly moves would prove nothing"
    np.testing.assert_allclose(narrow, wide, rtol=0.03)
    np.testing.assert_allclose(narrow.mean(), wide.mean(), rtol=0.003)
    assert np.abs(narrow / wide - 1).max() > 1e-6, "they are other moments"
    assert runs["int8"][1] < 0.45 * runs["float32"][1]


def test_weights_end_nearer_to_those_of_float32_than_with_bitsandbytes(runs):
    """Adam on the gradients of a run, with moments rounded after each step; distances are relative to the way of the
    weights."""

    def distance(gradients, store):
        ways = []
        for kept in (lambda x, signed: x, store):
            m, v, way = 0.0, 0.0, 0.0
            for step, g in enumerate(gradients, 1):
                m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * np.square(g)
                way = way + m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
                m, v = kept(m, True), kept(v, False)
            ways.append(way)
        return np.linalg.norm(ways[1] - ways[0]) / np.linalg.norm(ways[0])

    ours = jax.jit(lambda x, signed: moments.unpack(moments.pack(x, signed), signed), static_argnums=1)
    trees, compared = [jax.tree.leaves(tree) for tree in runs["gradients"]], 0
    assert len(trees) == 20
    for gradients in zip(*trees, strict=True):
        if gradients[0].size >= moments.SMALLEST:
            found = distance(gradients, lambda x, signed: np.float64(ours(x, signed)))
            assert found < 0.035 and found < 0.75 * distance(gradients, bitsandbytes)
            compared += 1
    assert compared == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_by_layer_is_all_at_once(dtype):
    """Against the transformation itself; of bfloat16 weights, random bits differ and the moments do not."""
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.0, moment_dtype="int8")
    model = dataclasses.replace(golden.MODEL, vocab_size=512)
    tx = optimizer_lib.make(config, model, 4)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype)  # noqa: E731
    params, grads = (jax.tree.map(draw, decoder.abstract_params(model)) for _ in range(2))
    run = jax.jit(lambda before, finite: optimizer_lib.advance(tx, config, before, grads, 9.0, 3, finite))
    before, after = (params, tx.init(params)), (params, tx.init(params))
    for _ in range(2):
        wide = optimizer_lib.clip(jax.tree.map(jnp.float32, grads), 9.0, config.clip_norm)
        updates, state = jax.jit(tx.update)(wide, before[1], before[0])
        before, after = (jax.tree.map(lambda p, u: (p + u).astype(dtype), before[0], updates), state), run(after, True)
        before = (after[0], before[1]) if dtype == "bfloat16" else before
    for one, other in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        if one.dtype in (np.int8, np.uint8):  # a rounded half may go either way where a compiler fuses
            assert np.mean(one != other) < 1e-3 and np.abs(np.int32(one) - other).max() <= 1
        else:
            np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=1e-4, atol=1e-6)
    assert sum(moments.is_packed(node) for node in jax.tree.leaves(after[1], is_leaf=moments.is_packed)) > 8
    for one, other in zip(*map(jax.tree.leaves, (run(after, False), after)), strict=True):
        np.testing.assert_array_equal(one, other)


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
