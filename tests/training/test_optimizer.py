"""Schedule and optimizer against transformers and torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s1jax.config.experiment import OptimizerConfig
from s1jax.config.model import ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.training import optimizer

MODEL = ModelConfig.dense(
    vocab_size=11,
    d_model=8,
    mlp_dim=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.mark.parametrize(("steps", "fraction"), [(315, 0.05), (63, 0.0), (20, 0.13)])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule_equals_transformers(steps, fraction, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    parameter = torch.nn.Parameter(torch.zeros(1))
    tx = torch.optim.SGD([parameter], lr=1e-3)
    warmup = int(np.ceil(fraction * steps))
    if kind == "constant":
        theirs = transformers.get_constant_schedule_with_warmup(tx, warmup)
    else:
        make = getattr(transformers, f"get_{kind}_schedule_with_warmup")
        theirs = make(tx, warmup, steps)
    ours = optimizer.schedule(OptimizerConfig(learning_rate=1e-3, warmup_fraction=fraction, schedule=kind), steps)
    rates = []
    for _ in range(steps):
        rates += theirs.get_last_lr()
        tx.step()
        theirs.step()
    np.testing.assert_allclose(jax.vmap(ours)(jnp.arange(steps)), rates, rtol=1e-5, atol=1e-10)


def test_schedule_of_the_paper():
    """315 steps: 16 of them rise from 0 to 1e-5, the last is all but 0."""
    rates = np.asarray(jax.vmap(optimizer.schedule(OptimizerConfig(), 315))(jnp.arange(316)))
    assert rates[0] == 0 and rates.argmax() == 16 and rates[315] == 0
    np.testing.assert_allclose(rates[16], 1e-5, rtol=1e-6)
    np.testing.assert_allclose(rates[8], 5e-6, rtol=1e-6)


def test_adamw_equals_torch():
    """Large eps and decay, so that neither could stand elsewhere unnoticed; gradients above and below the clip norm."""
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=0.05, eps=0.1, weight_decay=0.3, warmup_fraction=0.2, clip_norm=1.0)
    steps = 10
    params = decoder.init_params(MODEL, jax.random.key(0))
    matrices = optimizer.is_matrix(MODEL)
    theirs = jax.tree.map(lambda p: torch.nn.Parameter(torch.tensor(np.asarray(p))), params)
    groups = [
        {"params": [t for t, m in zip(*map(jax.tree.leaves, (theirs, matrices)), strict=True) if m == which],
         "weight_decay": config.weight_decay if which else 0.0}
        for which in (True, False)
    ]  # fmt: skip
    torch_tx = torch.optim.AdamW(groups, lr=1.0, betas=(config.b1, config.b2), eps=config.eps)
    rate = optimizer.schedule(config, steps)
    tx = optimizer.make(config, MODEL, steps)
    state = tx.init(params)

    @jax.jit
    def ours_step(params, state, grads):
        grads = optimizer.clip(grads, optax.global_norm(grads), config.clip_norm)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    for step in range(steps):
        size = 0.02 if step % 2 else 1.0
        grads = jax.tree.map(lambda p, s=size: jnp.asarray(s * rng.normal(size=p.shape), jnp.float32), params)
        for t, g in zip(jax.tree.leaves(theirs), jax.tree.leaves(grads), strict=True):
            t.grad = torch.tensor(np.asarray(g))
        torch.nn.utils.clip_grad_norm_(jax.tree.leaves(theirs), config.clip_norm)
        for group in torch_tx.param_groups:
            group["lr"] = float(rate(jnp.int32(step)))
        torch_tx.step()
        params, state = ours_step(params, state, grads)
    for ours, t in zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, t.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_decay_is_on_matrices_only():
    flags = {
        jax.tree_util.keystr(path): m for path, m in jax.tree_util.tree_leaves_with_path(optimizer.is_matrix(MODEL))
    }
    for name, decayed in flags.items():
        assert decayed == (not ("norm" in name or "bias" in name)), name
    assert sum(flags.values()) == 9  # embedding, head, 4 projections, 3 of the MLP


def test_clip_leaves_small_gradients_and_zero_switches_it_off():
    grads = {"a": jnp.array([3.0, 4.0])}
    np.testing.assert_allclose(optimizer.clip(grads, jnp.float32(5), 1.0)["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(optimizer.clip(grads, jnp.float32(5), 10.0)["a"], grads["a"])
    np.testing.assert_array_equal(optimizer.clip(grads, jnp.float32(5), 0.0)["a"], grads["a"])


def test_muon_orthogonalises_each_layer_of_each_kernel():
    """At rate 1 a kernel moves by a matrix whose singular values are near sqrt(max(1, outputs / inputs))."""
    config = OptimizerConfig(name="muon", learning_rate=1.0, warmup_fraction=0.0, schedule="constant", weight_decay=0.0)
    params = decoder.init_params(MODEL, jax.random.key(0))
    tx = optimizer.make(config, MODEL, 1)
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    d, f, n, h = MODEL.d_model, max(MODEL.mlp_dims), MODEL.num_heads, MODEL.head_dim
    layers = updates["layers"]
    for kernel, inputs, outputs in (
        (layers["mlp"]["gate"]["kernel"], d, f),
        (layers["mlp"]["down"]["kernel"], f, d),
        (layers["attention"]["query"]["kernel"], d, n * h),
        (layers["attention"]["out"]["kernel"], n * h, d),
    ):
        for layer in np.asarray(kernel):
            singular = np.linalg.svd(layer.reshape(inputs, outputs), compute_uv=False)
            singular /= np.sqrt(max(1, outputs / inputs))
            assert np.all((singular > 0.3) & (singular < 1.3)), singular  # 5 iterations do not bring small ones to 1
    # The first Adam step moves everything else by the sign of its gradient.
    embedding = np.asarray(updates["embed"]["embedding"])
    np.testing.assert_array_equal(np.sign(embedding), -np.sign(grads["embed"]["embedding"]))


def test_muon_decays_matrices_only():
    base = OptimizerConfig(name="muon", learning_rate=0.1, warmup_fraction=0.0, schedule="constant", weight_decay=0.0)
    params = jax.tree.map(lambda p: p + 1, decoder.init_params(MODEL, jax.random.key(0)))
    grads = jax.tree.map(jnp.ones_like, params)
    moved = []
    for decay in (0.0, 0.5):
        tx = optimizer.make(dataclasses.replace(base, weight_decay=decay), MODEL, 1)
        moved.append(jax.jit(tx.update)(grads, tx.init(params), params)[0])
    for without, decayed, p, matrix in zip(
        *map(jax.tree.leaves, (*moved, params, optimizer.is_matrix(MODEL))), strict=True
    ):
        np.testing.assert_allclose(decayed - without, -0.1 * 0.5 * p if matrix else 0 * p, atol=1e-6)


def moments(state):
    """All float arrays of an optimizer's state that are shaped like weights."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return [leaf for path, leaf in paths if isinstance(path[-1], jax.tree_util.DictKey)]


@pytest.mark.parametrize(("name", "stored"), [("adamw", 2.0), ("muon", None)])
def test_bfloat16_moments_take_half_the_memory(name, stored):
    params = decoder.abstract_params(MODEL)
    size = {}
    for dtype in ("float32", "bfloat16"):
        tx = optimizer.make(OptimizerConfig(name=name, moment_dtype=dtype), MODEL, 10)
        for weights in (params, decoder.abstract_params(MODEL, jnp.bfloat16)):  # whatever the weights' own type is
            state = jax.eval_shape(tx.init, weights)
            assert {str(leaf.dtype) for leaf in moments(state)} == {dtype}
            size[dtype] = sum(leaf.size * leaf.dtype.itemsize for leaf in moments(state))
        updates, after = jax.eval_shape(tx.update, params, state, params)
        for one, other in ((after, state), (updates, params)):
            assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)
        others = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim and leaf.dtype == jnp.float32]
        assert len(others) == (len(moments(state)) if dtype == "float32" else 0) + (name == "muon")
    assert size["bfloat16"] * 2 == size["float32"]
    if stored:
        assert size["float32"] == stored * 4 * MODEL.num_params


def draw(rng, spread=1.0):
    """Random float32 weights, in numpy: no program is compiled for them."""
    return jax.tree.map(
        lambda x: (spread * rng.normal(size=x.shape)).astype(np.float32), decoder.abstract_params(MODEL)
    )


def run_scan(config, params, gradient, inputs):
    """Weights and second moments after a step for each of `inputs`, the gradient being `gradient(params, input)`."""
    tx = optimizer.make(config, MODEL, len(jax.tree.leaves(inputs)[0]))

    def step(carry, x):
        params, state = carry
        updates, state = tx.update(gradient(params, x), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda p, xs: jax.lax.scan(step, (p, tx.init(p)), xs))(params, inputs)
    return params, state[0].nu


def flatten(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def test_bfloat16_moments_lose_nothing():
    """300 noisy steps on a random quadratic of curvatures 1e-2 to 1e2, against AdamW by its formula in float64.

    The way from start to end differs by less than 0.1 %, the loss at the end by less than 1 % and the second moments
    by less than 4 %.
    """
    config = OptimizerConfig(learning_rate=0.02, weight_decay=0.0)
    steps, rng = 300, np.random.default_rng(0)
    start, goal = draw(rng, 0.02), draw(rng)
    curvature = jax.tree.map(lambda x: np.float32(10) ** np.clip(x, -2, 2), draw(rng, 2.0))
    noise = jax.tree.map(lambda *each: np.stack(each), *(draw(rng, 0.3) for _ in range(steps)))

    p, c, g = flatten(start), flatten(curvature), flatten(goal)
    first, second = np.zeros_like(p), np.zeros_like(p)
    rate = np.asarray(jax.jit(optimizer.schedule(config, steps))(np.arange(steps)), np.float64)
    for step in range(steps):
        grad = c * (p - g + flatten(jax.tree.map(lambda x, s=step: x[s], noise)))
        first = config.b1 * first + (1 - config.b1) * grad
        second = config.b2 * second + (1 - config.b2) * grad**2
        root = np.sqrt(second / (1 - config.b2 ** (step + 1)))
        p = p - rate[step] * first / (1 - config.b1 ** (step + 1)) / (root + config.eps)

    loss = lambda p: 0.5 * np.sum(c * (p - g) ** 2)  # noqa: E731
    assert loss(p) < 0.01 * loss(flatten(start)), "it has learned"
    gradient = lambda params, x: jax.tree.map(lambda c, p, g, n: c * (p - g + n), curvature, params, goal, x)  # noqa: E731
    for dtype, way, above, seen in (("float32", 1e-5, 1e-4, 1e-4), ("bfloat16", 1e-3, 0.01, 0.04)):
        ours, nu = map(flatten, run_scan(dataclasses.replace(config, moment_dtype=dtype), start, gradient, noise))
        assert np.linalg.norm(ours - p) < way * np.linalg.norm(p - flatten(start))
        assert loss(ours) < (1 + above) * loss(p)
        np.testing.assert_allclose(nu, second, rtol=seen)


def test_a_bfloat16_second_moment_follows_a_gradient_that_shrinks():
    """After a gradient of 1 one of 0.1: at b2 = 0.95 the moment comes down to its square within 8 %.

    At 0.999 it would stay where it is for ever, and is refused.
    """
    config = OptimizerConfig(moment_dtype="bfloat16")
    sizes = np.repeat(np.float32([1.0, 0.1]), [100, 200])
    gradient = lambda params, size: jax.tree.map(lambda p: jnp.full_like(p, size), params)  # noqa: E731
    _, nu = run_scan(config, draw(np.random.default_rng(0)), gradient, sizes)
    np.testing.assert_allclose(flatten(nu), 0.01, rtol=1 / 256 / (1 - 0.95))
    bfloat16 = np.dtype(jnp.bfloat16).type
    assert bfloat16(np.float32(0.999)) == 1 and bfloat16(np.float32(0.95)) < 1
    for name in ("b1", "b2"):
        with pytest.raises(UserError, match=rf"optimizer\.{name} is 0\.99: .* give at most 0\.98, or 'float32'"):
            OptimizerConfig(moment_dtype="bfloat16", **{name: 0.99})
        OptimizerConfig(**{name: 0.999})
        OptimizerConfig(moment_dtype="bfloat16", **{name: 0.98})


def test_bfloat16_weights_are_right_on_the_mean():
    """Of 4,096 steps from the same weights: each sum is a neighbour in bfloat16, their mean is the sum in float64.

    To the nearest, nine of ten of these updates would be lost: they are up to a last place, and down to a thousandth.
    """
    rng = np.random.default_rng(0)
    weights = (rng.choice([-1, 1], 512) * 10.0 ** rng.uniform(-8, 4, 512)).astype(jnp.bfloat16)
    last_place = 2.0 ** (np.floor(np.log2(np.abs(weights.astype(np.float64)))) - 7)
    updates = (last_place * rng.choice([-1, 1], 512) * 10.0 ** rng.uniform(-3, 0, 512)).astype(np.float32)
    run = jax.jit(jax.vmap(lambda step: optimizer.apply({"w": weights}, {"w": updates}, step)["w"]))
    sums = np.asarray(run(np.arange(4096)))
    assert sums.dtype == jnp.bfloat16
    exact = np.float64(np.float32(np.float32(weights) + updates))  # the sum itself is rounded to float32
    off = (np.float64(sums) - exact) / last_place
    assert np.abs(off).max() < 1, "never further than the next neighbour"
    assert np.abs(off.mean(0)).max() < 6 * 0.5 / 4096**0.5
    assert (sums[0] != sums[1]).any() and np.mean(sums.astype(np.float32) != np.float32(weights)) > 0.1
    np.testing.assert_array_equal(sums[7], run(np.array([7]))[0])


def test_bfloat16_weights_keep_what_is_exact_and_what_is_no_number():
    weights = np.array([1.5, -0.0, np.inf, -np.inf, np.nan, 3e38], jnp.bfloat16)
    for step in range(8):
        sums = optimizer.apply([weights], [np.zeros(6, np.float32)], step)[0]
        np.testing.assert_array_equal(np.float32(sums), np.float32(weights))
    plain = optimizer.apply([np.float32([1, 2])], [np.float32([1e-7, 1])], 0)[0]
    np.testing.assert_array_equal(plain, np.float32([1 + 1e-7, 3]))
