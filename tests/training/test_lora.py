"""Adapters: gradients by the chain rule, what is frozen, and settings that are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import DistilConfig, Experiment, MeshConfig, OptimizerConfig, TrainConfig
from s1jax.config.layers import GQA, Dense, Experts, Layer
from s1jax.config.lora import OFF, LoraConfig
from s1jax.config.model import Group, ModelConfig
from s1jax.errors import UserError
from s1jax.model import adapters as adapters_lib
from s1jax.model import decoder, layouts
from s1jax.model.quant_groups import GroupQTensor
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import quantized
from s1jax.plan import flops
from s1jax.training import lora as lora_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib

MODEL = ModelConfig.dense(
    vocab_size=29, d_model=16, mlp_dim=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, qkv_bias=True
)
_MIXED = Experts(num_experts=4, experts_per_token=2, hidden=64, shared_hidden=64)
MIXTURE = ModelConfig(
    vocab_size=29,
    d_model=64,
    groups=(Group(2, (Layer(GQA(2, 1, 32), Dense(64)), Layer(GQA(2, 1, 32), _MIXED))),),
)
TRAIN = TrainConfig(batch_size=4, compute_dtype="float32", remat="none", loss_chunk=16)
LORA = LoraConfig(rank=3, alpha=8.0, base="float32")


def make_batch() -> dict[str, np.ndarray]:
    """4 rows of 12; the last one ends in padding."""
    rng = np.random.default_rng(0)
    real = np.arange(12) < np.array([[12], [12], [12], [7]])
    return {
        "tokens": rng.integers(29, size=(4, 12)).astype(np.int32) * real,
        "targets": rng.integers(29, size=(4, 12)).astype(np.int32) * real,
        "segment_ids": real.astype(np.int32),
        "positions": (np.arange(12, dtype=np.int32) * real).astype(np.int32),
        "weights": (rng.random((4, 12)) * real).astype(np.float32),
    }


def random_adapters(lora: LoraConfig = LORA, model: ModelConfig = MODEL) -> dict:
    """Adapters with both matrices away from 0."""
    shapes = adapters_lib.abstract(model, lora, jnp.float32)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def weights(model: ModelConfig) -> dict:
    params = jax.jit(functools.partial(decoder.init_params, model))(jax.random.key(0))
    return jax.tree.map(lambda x: x if x.ndim < 3 else 4 * x, params)


@pytest.fixture(scope="module")
def base():
    return weights(MODEL)


def flat(path: tuple[str, ...], pair: dict, kernel: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [L, inputs, R], B [L, R, outputs] and the kernel [L, inputs, outputs] as matrices; L counts experts, too."""
    a, b = np.asarray(pair["a"]), np.asarray(pair["b"])
    rank, count = a.shape[-1], int(np.prod(a.shape[: 2 if "experts" in path else 1]))
    matrices = a.reshape(count, -1, rank), b.reshape(count, rank, -1)
    return *matrices, np.asarray(kernel).reshape(count, -1, matrices[1].shape[-1])


def projections(tree: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if set(tree) == {"a", "b"}:
        return [path]
    return [found for name, child in tree.items() for found in projections(child, (*path, name))]


def at(tree: dict, path: tuple[str, ...]) -> dict:
    return functools.reduce(lambda node, name: node[name], path, tree)


@functools.cache
def expected(model: ModelConfig, mesh) -> tuple[jax.Array, dict]:
    """Loss and adapter gradients from those of all weights: dA = scale dW B', dB = scale A' dW at W + scale A B."""
    adapters = random_adapters(LORA, model)
    merged = jax.tree.map(np.asarray, weights(model))
    for path in projections(adapters):
        kernel = at(merged, path)["kernel"]
        a, b, _ = flat(path, at(adapters, path), kernel)
        at(merged, path)["kernel"] = kernel + LORA.scale * (a @ b).reshape(kernel.shape)
    (loss, _), grads = jax.jit(step_lib.make_gradients(model, TRAIN, mesh))(merged, make_batch())
    found = {}
    for path in projections(adapters):
        a, b, of_kernel = flat(path, at(adapters, path), at(grads, path)["kernel"])
        of_a, of_b = LORA.scale * of_kernel @ b.swapaxes(1, 2), LORA.scale * a.swapaxes(1, 2) @ of_kernel
        found[path] = of_a, of_b
    return loss, found


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (MODEL, {}),
        (MODEL, {"remat": "full"}),
        (MODEL, {"remat": "full", "accumulation": 2}),
        (MODEL, {"remat": "full,save_projections:1", "accumulation": 2}),
        (MODEL, {"accumulation": 4}),
        (MIXTURE, {"remat": "full"}),
    ],
)
def test_gradients_follow_from_those_of_all_weights(mesh, model, changes):
    base, (wanted, of_adapters) = weights(model), expected(model, mesh)
    compute = step_lib.make_gradients(model, dataclasses.replace(TRAIN, **changes), mesh, lora=LORA)
    (loss, _), grads = jax.jit(compute)(random_adapters(LORA, model), make_batch(), step_lib.Frozen(base=base))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert sorted(projections(grads)) == sorted(of_adapters) and len(of_adapters) == (7 if model is MODEL else 17)
    for path, (of_a, of_b) in of_adapters.items():
        a, b, _ = flat(path, at(grads, path), np.zeros_like(at(base, path)["kernel"]))
        np.testing.assert_allclose(a, of_a, rtol=0, atol=2e-5 * np.abs(of_a).max())
        np.testing.assert_allclose(b, of_b, rtol=0, atol=2e-5 * np.abs(of_b).max())
        assert np.abs(of_a).max() > 1e-3 and np.abs(of_b).max() > 1e-3


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_gradient_of_the_frozen_weights_is_computed(mesh, base, remat):
    """No float array of a stacked kernel's shape is made by anything but the step's input."""
    train = dataclasses.replace(TRAIN, remat=remat)
    compute = step_lib.make_gradients(MODEL, train, mesh, lora=LORA)
    text = jax.jit(compute).lower(random_adapters(), make_batch(), step_lib.Frozen(base=base)).compile().as_text()
    made = [line for line in text.splitlines() if " = f32[2,16,24]" in line and " parameter(" not in line]
    assert not [line for line in made if "get-tuple-element" not in line and "copy" not in line], made
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(compute, random_adapters(), make_batch(),
              step_lib.Frozen(base=base))[1])]  # fmt: skip
    assert (2, 16, 24) not in shapes


def test_start_is_that_of_the_base(mesh, base):
    adapters = jax.jit(functools.partial(adapters_lib.init, MODEL, LORA, dtype="float32"))(jax.random.key(3))
    compute = jax.jit(step_lib.make_gradients(MODEL, TRAIN, mesh, lora=LORA))
    (loss, _), _ = compute(adapters, make_batch(), step_lib.Frozen(base=base))
    (plain, _), _ = jax.jit(step_lib.make_gradients(MODEL, TRAIN, mesh))(base, make_batch())
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    down = np.asarray(adapters["layers"]["mlp"]["down"]["a"])
    assert 0.9 / np.sqrt(24) < np.abs(down).max() <= 1 / np.sqrt(24)
    np.testing.assert_allclose(down.std(), 1 / np.sqrt(3 * 24), rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": -1}, "lora.rank is -1"),
        ({"rank": 0, "targets": "q_proj"}, "lora.targets is 'q_proj', and lora.rank is 0"),
        ({"rank": 0, "base": "nf4"}, "lora.base is 'nf4', and lora.rank is 0"),
        ({"rank": 4, "targets": "q_proj,router"}, "lora.targets has 'router'; choose from q_proj,"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha is 0.0"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        LoraConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distil": DistilConfig(teacher="x", on_policy=1.0)}, r"distil\.on_policy is 1\.0"),
        ({"optimizer": OptimizerConfig(name="muon")}, "optimizer.name is 'muon'"),
    ],
)
def test_settings_that_adapters_cannot_have(changes, words):
    with pytest.raises(UserError, match=words):
        Experiment(**{"init_from": "x", "lora": LORA, **changes})


def test_adapters_without_a_checkpoint_or_a_projection_are_refused():
    with pytest.raises(UserError, match="adapters belong to a checkpoint"):
        lora_lib.check(MODEL, Experiment(model=MODEL, lora=LORA))
    with pytest.raises(UserError, match="the model has none of these"):
        lora_lib.check(MODEL, Experiment(init_from="x", lora=LoraConfig(rank=1, targets="q_a_proj")))


def test_parts_of_the_mlp_are_refused(mesh):
    with pytest.raises(UserError, match="mlp_parts is 2"):
        step_lib.make_loss(MODEL, dataclasses.replace(TRAIN, mlp_parts=2), mesh, lora=LORA)


# 64 inputs, so that groups divide them.
WIDE = ModelConfig.dense(
    vocab_size=29, d_model=64, mlp_dim=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, qkv_bias=True
)


@pytest.mark.parametrize(("kind", "remat"), [("int8", "none"), ("nf4", "full"), ("fp8", "full")])
def test_small_base_has_the_gradients_of_its_dequantised_weights(mesh, kind, remat):
    lora = LoraConfig(rank=4, base=kind)
    params = jax.jit(functools.partial(decoder.init_params, WIDE))(jax.random.key(0))
    host = jax.tree.map(np.asarray, params)
    base = quantized.quantize(host, WIDE, lora.base, TRAIN.compute_dtype, mesh)
    abstract = lora_lib.abstract_base(WIDE, lora, TRAIN, mesh)
    assert jax.tree.structure(base) == jax.tree.structure(abstract)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(base)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(abstract)
    ]
    down = base["layers"]["mlp"]["down"]["kernel"]
    assert down.kind == kind and down.codes.nbytes == 3 * 128 * 64 // (2 if kind == "nf4" else 1)
    floats = dequantised(base)
    error = np.asarray(floats["layers"]["mlp"]["down"]["kernel"]) - host["layers"]["mlp"]["down"]["kernel"]
    relative = error.std() / host["layers"]["mlp"]["down"]["kernel"].std()
    least, most = {"int8": (0.002, 0.012), "nf4": (0.05, 0.12), "fp8": (0.015, 0.03)}[kind]
    assert least < relative < most
    adapters = random_adapters(lora, WIDE)
    compute = step_lib.make_gradients(WIDE, dataclasses.replace(TRAIN, remat=remat), mesh, lora=lora)
    (loss, _), grads = jax.jit(compute)(adapters, make_batch(), step_lib.Frozen(base=base))
    (theirs, _), wanted = jax.jit(compute)(adapters, make_batch(), step_lib.Frozen(base=floats))
    np.testing.assert_allclose(loss, theirs, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_step_without_a_finite_loss_leaves_the_adapters(mesh, base):
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0)
    tx = optimizer_lib.make(optimizer, MODEL, 4, LORA)
    abstract = step_lib.abstract_state(MODEL, tx, mesh, "float32", LORA)
    step = step_lib.make_step(MODEL, TRAIN, optimizer, 4, tx, mesh, abstract, lora=LORA)
    adapters, batch, frozen = random_adapters(), make_batch(), step_lib.Frozen(base=base)
    moments = [leaf for leaf in jax.tree.leaves(abstract.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(adapters))
    bad = batch | {"weights": np.where(np.arange(12) == 3, np.inf, batch["weights"]).astype(np.float32)}
    state, metrics = step(step_lib.init_state(adapters, tx, abstract), bad, frozen)
    assert not metrics["finite"]
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(adapters), strict=True):
        np.testing.assert_array_equal(one, other)
    state, metrics = step(state, batch, frozen)
    assert metrics["finite"] and int(state.step) == 1
    assert all((np.asarray(x) != y).any() for x, y in zip(*map(jax.tree.leaves, (state.params, adapters)), strict=True))


def dequantised(base: dict) -> dict:
    return layouts.map_kernels(
        base, lambda _, kernel: kernel.dequantize("float32") if isinstance(kernel, GroupQTensor) else kernel
    )


@pytest.mark.parametrize("kind", ["nf4", "mxfp4"])
def test_small_experts_have_the_gradients_of_their_dequantised_weights(mesh, kind):
    lora = LoraConfig(rank=4, base=kind, targets="gate_proj,up_proj,down_proj")
    base = quantized.quantize(jax.tree.map(np.asarray, weights(MIXTURE)), MIXTURE, lora.base, TRAIN.compute_dtype, mesh)
    assert base["layers_0_1"]["mlp"]["experts"]["up"]["kernel"].codes.shape == (2, 4, 32, 64)
    assert isinstance(base["layers_0_1"]["attention"]["query"]["kernel"], jax.Array) == (kind == "mxfp4")
    compute = jax.jit(step_lib.make_gradients(MIXTURE, dataclasses.replace(TRAIN, remat="full"), mesh, lora=lora))
    adapters = random_adapters(lora, MIXTURE)
    (loss, _), grads = compute(adapters, make_batch(), step_lib.Frozen(base=base))
    (theirs, _), wanted = compute(adapters, make_batch(), step_lib.Frozen(base=dequantised(base)))
    np.testing.assert_allclose(loss, theirs, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


def made_by_loops(jaxpr) -> set[tuple[int, ...]]:
    """Shapes that the `while` loops of a program carry."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            found |= {variable.aval.shape for variable in equation.outvars}
        for body in flops.bodies(equation.params):
            found |= made_by_loops(body)
    return found


@pytest.mark.parametrize("remat", ["none", "full"])
def test_frozen_experts_get_no_gradient(mesh, remat):
    train = dataclasses.replace(TRAIN, remat=remat)
    plain, adapted = (step_lib.make_gradients(MIXTURE, train, mesh, lora=one) for one in (OFF, LORA))
    frozen = step_lib.Frozen(base=weights(MIXTURE))
    trained = made_by_loops(jax.make_jaxpr(plain)(weights(MIXTURE), make_batch()).jaxpr)
    found = made_by_loops(jax.make_jaxpr(adapted)(random_adapters(LORA, MIXTURE), make_batch(), frozen).jaxpr)
    assert (4, 64, 64) in trained and (4, 64, 64) not in found
    assert (4, 64, 3) in found, "those of the adapters"


def float_sizes(jaxpr) -> set[int]:
    """Sizes of all float arrays that a program makes, loops and conditions included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.size for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
        for body in flops.bodies(equation.params):
            found |= float_sizes(body)
    return found


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_float_copy_of_a_stacked_base_is_made(mesh, remat):
    lora = LoraConfig(rank=4, base="nf4", targets="q_proj,down_proj")
    train = dataclasses.replace(TRAIN, remat=remat)
    base = lora_lib.abstract_base(WIDE, lora, train, mesh)
    compute = step_lib.make_gradients(WIDE, train, mesh, lora=lora)
    jaxpr = jax.make_jaxpr(compute)(random_adapters(lora, WIDE), make_batch(), step_lib.Frozen(base=base))
    stacked, layer = 3 * 64 * 128, 64 * 128
    sizes = float_sizes(jaxpr.jaxpr)
    assert layer in sizes and max(sizes) < stacked
    plain = step_lib.make_gradients(WIDE, train, mesh)
    jaxpr = jax.make_jaxpr(plain)(decoder.abstract_params(WIDE), make_batch())
    assert max(float_sizes(jaxpr.jaxpr)) >= stacked, "the test can see one"


def test_groups_that_divide_no_projection_are_refused(mesh):
    with pytest.raises(UserError, match="layers/attention/key has 16 inputs, which nf4 groups of 64 do not divide"):
        lora_lib.abstract_base(MODEL, LoraConfig(rank=4, base="nf4"), TRAIN, mesh)
    with pytest.raises(UserError, match="mxfp4 is a type of the weights of experts, and the model has none"):
        lora_lib.abstract_base(WIDE, LoraConfig(rank=4, base="mxfp4"), TRAIN, mesh)
