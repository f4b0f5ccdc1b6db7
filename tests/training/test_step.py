"""The jitted step: accumulation, precision, donation, and what a loss that is not finite does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import DistilConfig, MeshConfig, OptimizerConfig, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data.batches import Batches
from s1jax.data.packing import Example
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib
from s1jax.training import teacher as teacher_lib
from s1jax.training.losses.cross_entropy import batch_loss

MODEL = ModelConfig.dense(
    vocab_size=29, d_model=16, mlp_dim=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, qkv_bias=True
)
TRAIN = TrainConfig(batch_size=4, compute_dtype="float32", remat="none", loss_chunk=16)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0)
STEPS = 10


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """4 rows of 12: two segments, one segment and padding, ..., an all-zero row as in an epoch's short last step."""
    rng = np.random.default_rng(seed)
    segments = np.array([[1] * 5 + [2] * 7, [1] * 8 + [0] * 4, [1] * 12, [0] * 12], np.int32)
    starts = np.where(np.diff(segments, axis=1, prepend=-1) != 0, np.arange(12), 0)
    positions = np.arange(12) - np.maximum.accumulate(starts, axis=1)
    return {
        "tokens": rng.integers(29, size=(4, 12)).astype(np.int32) * (segments > 0),
        "targets": rng.integers(29, size=(4, 12)).astype(np.int32) * (segments > 0),
        "segment_ids": segments,
        "positions": (positions * (segments > 0)).astype(np.int32),
        "weights": (rng.random((4, 12)) * (segments > 0)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return jax.jit(functools.partial(decoder.init_params, MODEL))(jax.random.key(0))


@pytest.fixture(scope="module")
def gradients(mesh, params):
    """Loss and gradients of `make_batch` under variations of TRAIN, each compiled once."""

    @functools.cache
    def compute(**changes):
        train = dataclasses.replace(TRAIN, **changes)
        (loss, _), grads = jax.jit(step_lib.make_gradients(MODEL, train, mesh))(params, make_batch())
        return loss, grads

    return compute


@functools.cache
def make_step(mesh, train, dtype):
    tx = optimizer_lib.make(OPTIMIZER, MODEL, STEPS)
    abstract = step_lib.abstract_state(MODEL, tx, mesh, dtype)
    return tx, abstract, step_lib.make_step(MODEL, train, OPTIMIZER, STEPS, tx, mesh, abstract)


def make_run(mesh, params, train=TRAIN, dtype="float32"):
    tx, abstract, step = make_step(mesh, train, dtype)
    copy = jax.tree.map(jnp.array, params)  # the step donates what it is given
    return step_lib.init_state(copy, tx, abstract), step


@pytest.mark.parametrize("attention", ["xla", "chunked"])
@pytest.mark.parametrize("weighting", ["sequence", "token"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(mesh, params, attention, weighting):
    rng = np.random.default_rng(0)
    examples = []
    for index in range(8):
        length = int(rng.integers(5, 50))
        examples.append(Example(rng.integers(29, size=length).astype(np.int32), np.arange(length) >= 3, f"row {index}"))
    train = dataclasses.replace(TRAIN, batch_size=8, loss_chunk=64, attention=attention)
    compute = jax.jit(step_lib.make_gradients(MODEL, train, mesh))
    found = []
    for batching in ("padded", "packed"):
        batches = Batches(examples, batch_size=8, block_size=64, batching=batching, weighting=weighting)
        (loss, _), grads = compute(params, batches.batch(0))
        found.append((batches.batch(0)["tokens"].shape, loss, grads))
    (padded_shape, padded_loss, padded), (packed_shape, packed_loss, packed) = found
    assert packed_shape[0] < padded_shape[0]
    np.testing.assert_allclose(packed_loss, padded_loss, rtol=0, atol=1e-5)
    assert_close(packed, padded, rtol=0, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(padded)) > 0.01


def assert_close(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), **tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 4},
        {"remat": "full", "loss_chunk": 3},
        {"accumulation": 2, "remat": "full"},
        {"mlp_parts": 3},
        {"mlp_parts": 4, "remat": "full"},
    ],
)
def test_same_loss_and_gradients(gradients, changes):
    """Micro-batches have different weights and one of them is empty, so that a mean of means would differ."""
    loss, grads = gradients(**changes)
    expected, expected_grads = gradients()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert_close(grads, expected_grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("parts", "tensor"), [(5, 1), (2, 2)])
def test_parts_of_the_mlp_that_can_not_be(parts, tensor):
    mesh = jax.sharding.AbstractMesh((1, 1, 1, tensor), mesh_lib.AXES)
    with pytest.raises(UserError, match=f"train.mlp_parts={parts} wants mesh.tensor=1, which is {tensor}, .* 24"):
        step_lib.make_gradients(MODEL, dataclasses.replace(TRAIN, mlp_parts=parts), mesh)


def test_gradients_equal_autodiff_of_the_formula(gradients, params):
    batch = make_batch()

    def formula(params):
        hidden = decoder.forward(params, MODEL, batch["tokens"], batch["positions"], batch["segment_ids"])
        logs = jax.nn.log_softmax(decoder.logits(params, MODEL, hidden))
        picked = jnp.take_along_axis(logs, batch["targets"][..., None], -1)[..., 0]
        return -(batch["weights"] * picked).sum() / batch["weights"].sum()

    expected, expected_grads = jax.jit(jax.value_and_grad(formula))(params)
    loss, grads = gradients()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert_close(grads, expected_grads, rtol=1e-4, atol=1e-6)


def test_bfloat16_compute_is_near_and_gradients_are_float32(gradients):
    loss, grads = gradients(compute_dtype="bfloat16")
    np.testing.assert_allclose(loss, gradients()[0], rtol=0.01)
    norm = optimizer_norm(gradients()[1])
    difference = jax.tree.map(jnp.subtract, grads, gradients()[1])
    assert optimizer_norm(difference) < 0.05 * norm
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


@functools.cache
def many_tokens(mesh, tied, dtype, remat):
    """Gradients of 2 rows of 2,048 tokens, with their paths."""
    model = dataclasses.replace(MODEL, tied_embeddings=tied, context_length=2048)
    params = jax.jit(functools.partial(decoder.init_params, model))(jax.random.key(2))
    rng = np.random.default_rng(3)
    tokens = np.minimum(rng.geometric(0.5, size=(2, 2048)) - 1, 28).astype(np.int32)
    ones = np.ones((2, 2048), np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.tile(np.arange(2048, dtype=np.int32), (2, 1)),
        "segment_ids": ones,
        "weights": ones.astype(np.float32),
    }
    changes = dict(batch_size=2, remat=remat, attention="chunked", loss_chunk=1024, compute_dtype=dtype)
    compute = step_lib.make_gradients(model, dataclasses.replace(TRAIN, **changes), mesh)
    return jax.tree_util.tree_leaves_with_path(jax.jit(compute)(params, batch)[1])


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_compute_adds_up_many_tokens(mesh, remat, tied):
    """Gradients that are sums over 4,096 tokens, half of which are one id; summed in bfloat16 that id's were off by a
    quarter. Those of the keys' biases are left out: a softmax does not change with them, and they are noise."""
    found = many_tokens(mesh, tied, "bfloat16", remat), many_tokens(mesh, tied, "float32", "none")
    for (path, ours), (_, wide) in zip(*found, strict=True):
        name = jax.tree_util.keystr(path)
        if "['key']['bias']" not in name:
            assert optimizer_norm(ours - wide) < 0.03 * optimizer_norm(wide), name


def optimizer_norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


def test_step_learns_donates_and_counts(mesh, params):
    state, step = make_run(mesh, params)
    losses = []
    for _ in range(4):
        old = state
        state, metrics = step(state, make_batch())
        losses.append(float(metrics["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert losses == sorted(losses, reverse=True)
    assert int(state.step) == 4
    assert int(metrics["tokens"]) == 32 and int(metrics["supervised"]) == 32
    segments = make_batch()["segment_ids"]
    mask = (
        (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0) & np.tril(np.ones((12, 12), bool))
    )
    assert metrics["pairs"] == mask.sum() == 15 + 28 + 36 + 78
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2 * 0.5 * (1 + np.cos(np.pi * 3 / 10)), rtol=1e-6)


@pytest.mark.parametrize("where", ["weights", "params"])
def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was(mesh, params, where):
    state, step = make_run(mesh, params)
    state, _ = step(state, make_batch())
    batch = make_batch(1)
    if where == "weights":
        batch["weights"][0, 0] = np.inf
    else:  # finite weights whose products overflow
        broken = jax.tree.map(jnp.array, state.params)
        broken["layers"]["mlp"]["up"]["kernel"] *= 1e30
        broken["layers"]["mlp"]["down"]["kernel"] *= 1e30
        state = dataclasses.replace(state, params=broken)
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, batch)
    assert not metrics["finite"]
    for after, old in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(after, old)


def test_a_batch_without_any_weight_has_loss_zero(mesh, params):
    state, step = make_run(mesh, params)
    batch = make_batch()
    batch["weights"] = np.zeros_like(batch["weights"])
    _, metrics = step(state, batch)
    assert metrics["finite"] and float(metrics["loss"]) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types_at_rest(mesh, params, dtype):
    state, step = make_run(mesh, params, dataclasses.replace(TRAIN, compute_dtype="bfloat16"), dtype)
    after, _ = jax.eval_shape(step, state, make_batch())
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    floats = lambda tree: {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}  # noqa: E731
    assert floats(after.params) == {dtype} and floats(after.opt_state) == {"float32"}


def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch):
    options = {"xla_of_another_day": "1", "xla_cpu_enable_fast_math": True}
    monkeypatch.setitem(step_lib.COMPILER_OPTIONS, "cpu", options)
    lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(3))
    with pytest.warns(UserWarning, match="no option xla_of_another_day"):
        compiled = step_lib.compile_for("cpu", lowered)
    np.testing.assert_array_equal(compiled(jnp.zeros(3)), np.ones(3))
    monkeypatch.setitem(step_lib.COMPILER_OPTIONS, "cpu", {"xla_cpu_enable_fast_math": "perhaps"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid bool"):
        step_lib.compile_for("cpu", lowered)


def test_a_step_minimises_the_loss_that_it_is_given(mesh, params):
    """One that reads an array of its own from the batch, as a policy gradient does: tokens of factor 0 do not count."""
    factors = np.zeros((4, 12), np.float32)
    factors[1] = 3.0

    def scaled(hidden, kernel, batch, chunk, mesh, teacher=None, softcap=0.0):
        weights = batch["weights"] * batch["factors"]
        value, _ = batch_loss(hidden, kernel, batch | {"weights": weights}, chunk, mesh)
        return value, {"half": value / 2}

    batch = make_batch()
    (value, parts), grads = jax.jit(step_lib.make_gradients(MODEL, TRAIN, mesh, scaled))(
        params, batch | {"factors": factors}
    )
    total, of_row = batch["weights"].sum(), batch["weights"] * (factors > 0)
    (plain, _), expected = jax.jit(step_lib.make_gradients(MODEL, TRAIN, mesh))(params, batch | {"weights": of_row})
    share = 3 * of_row.sum() / total
    np.testing.assert_allclose(value, share * plain, rtol=1e-6)
    np.testing.assert_allclose(parts["half"], value / 2, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, share * other, rtol=1e-4, atol=1e-7)


def test_micro_batches_of_a_distillation_add_up(mesh, params):
    """Loss, its parts and gradients with a teacher are those of the whole batch, and the teacher counts."""
    config = dataclasses.replace(MODEL, d_model=32)
    frozen = jax.jit(lambda: jax.tree.map(lambda p: 5 * p, decoder.init_params(config, jax.random.key(7))))()
    loss = teacher_lib.loss(DistilConfig(loss="jsd", weight=0.5, temperature=2.0))
    found = []
    for count in (1, 4):
        train = dataclasses.replace(TRAIN, accumulation=count)
        compute = step_lib.make_gradients(MODEL, train, mesh, loss, step_lib.Teacher(config, "xla"))
        found.append(jax.jit(compute)(params, make_batch(), step_lib.Frozen(frozen)))
    (values, grads), (in_parts, grads_in_parts) = found
    assert_close(in_parts, values, rtol=1e-6)
    assert_close(grads_in_parts, grads, rtol=1e-4, atol=1e-6)
    assert values[1]["distillation"] > 0.1
