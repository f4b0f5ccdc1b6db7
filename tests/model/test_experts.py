"""Mixtures of experts: routers against plain NumPy, and every implementation against all experts computed densely."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.layers import Experts
from s1jax.model import quant, quant_groups
from s1jax.model.linear import Adapted, BatchAdapted
from s1jax.model.mlp import grouped, router
from s1jax.model.mlp.expert_weights import ExpertWeights, activate

E, K, D, F = 6, 3, 16, 32


def _experts(bias, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    biases = (draw(E, F), draw(E, F), draw(E, D)) if bias else (None, None, None)
    return ExpertWeights(draw(E, D, F), draw(E, D, F), draw(E, F, D), *biases)


def _pairs(tokens, uneven=False, seed=1):
    """Inputs [1, R, D], weights and experts of every token; with `uneven` only two experts are ever chosen first."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((1, tokens, D)), jnp.float32)
    ids = np.stack([rng.permutation(2 if uneven else E)[: 1 if uneven else K] for _ in range(tokens)])[None]
    weights = rng.uniform(0.1, 1, ids.shape)
    return x, jnp.asarray(weights, jnp.float32), jnp.asarray(ids, jnp.int32)


def _dense(x, weights, ids, experts, activation):
    """Every expert for every token; those that were not chosen count 0."""
    add = lambda bias: 0 if bias is None else bias[:, None, None]  # noqa: E731
    high = functools.partial(jnp.einsum, precision="highest")
    gate = high("btd,edf->ebtf", x, experts.gate) + add(experts.gate_bias)
    up = high("btd,edf->ebtf", x, experts.up) + add(experts.up_bias)
    y = high("ebtf,efd->ebtd", activate(gate, up, activation), experts.down) + add(experts.down_bias)
    chosen = jnp.sum((ids[..., None] == jnp.arange(E)) * weights[..., None], axis=2)
    return high("ebtd,bte->btd", y, chosen)


def _close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * max(scale, 1))


@pytest.mark.parametrize("implementation", ["loop", "gather", "blocks", "megablox_interpreted"])
def test_outputs_are_those_of_all_experts_computed_densely(implementation):
    run = functools.partial(grouped.apply, implementation=implementation)
    for pairs, bias, activation in ((_pairs(37), True, "clamped"), (_pairs(40, uneven=True), False, "silu")):
        experts = _experts(bias)
        _close(run(*pairs, experts, activation), _dense(*pairs, experts, activation))


@pytest.mark.parametrize("implementation", ["blocks", "megablox_interpreted"])
def test_gradients_are_those_of_all_experts_computed_densely(implementation):
    activation = "clamped"
    experts, (x, weights, ids) = _experts(bias=True), _pairs(50)
    weights = weights.at[:, 20:].multiply(0.5)

    def loss(x, weights, experts, run):
        return jnp.sum(jnp.cos(jnp.arange(x.size)).reshape(x.shape) * run(x, weights, ids, experts, activation))

    run = functools.partial(grouped.apply, implementation=implementation)
    ours = jax.jit(jax.grad(functools.partial(loss, run=run), argnums=(0, 1, 2)))(x, weights, experts)
    theirs = jax.grad(functools.partial(loss, run=_dense), argnums=(0, 1, 2))(x, weights, experts)
    jax.tree.map(_close, ours, theirs)


@pytest.mark.parametrize("implementation", ["loop", "gather", "blocks", "megablox_interpreted"])
def test_experts_that_are_elsewhere_add_nothing(implementation):
    """A device that holds experts 2 to 4 sees the others' numbers below 0 and from 3 on."""
    experts, (x, weights, ids) = _experts(bias=True), _pairs(30)
    here = jax.tree.map(lambda a: a[2:5], experts)
    run = functools.partial(grouped.apply, activation="clamped", implementation=implementation)
    own = (ids >= 2) & (ids < 5)
    expected = _dense(x, jnp.where(own, weights, 0), ids, experts, "clamped")
    _close(run(x, weights, ids - 2, here), expected)
    if implementation in ("blocks", "megablox_interpreted"):
        of_x, of_weights = jax.grad(lambda x, w: jnp.sum(run(x, w, ids - 2, here) ** 2), (0, 1))(x, weights)
        dense = lambda x, w: jnp.sum(_dense(x, jnp.where(own, w, 0), ids, experts, "clamped") ** 2)  # noqa: E731
        theirs = jax.grad(dense, (0, 1))(x, weights)
        _close(of_x, theirs[0])
        _close(of_weights, theirs[1])


@pytest.mark.parametrize("implementation", ["loop", "gather", "blocks"])
@pytest.mark.parametrize("kind", ["int8", "int8 group", "nf4", "mxfp4", "fp8"])
def test_quantised_experts_give_what_their_dequantised_ones_do(implementation, kind):
    experts, pairs = _experts(bias=False), _pairs(20)
    if kind == "int8":
        small = jax.tree.map(lambda kernel: quant.quantize(kernel, (-2,)), experts)
        wide = [weight.values * weight.scale[:, None] for weight in (small.gate, small.up, small.down)]
    else:
        of_group = lambda kernel: quant_groups.quantize_groups(  # noqa: E731
            kernel, 1, kind.split()[0], 32, num_lead_axes=1, name=""
        )
        double = [jnp.tile(kernel, (1, 2, 1)) for kernel in (experts.gate, experts.up)]
        small = ExpertWeights(*map(of_group, [*double, jnp.tile(experts.down, (1, 1, 2))]))
        wide = [weight.dequantize(jnp.float32) for weight in (small.gate, small.up, small.down)]
        pairs = (jnp.tile(pairs[0], (1, 1, 2)), *pairs[1:])
    run = functools.partial(grouped.apply, activation="silu", implementation=implementation)
    _close(run(*pairs, small), _dense(*pairs, ExpertWeights(*wide), "silu"))


def test_quantised_experts_have_gradients_for_their_inputs_alone():
    experts, (x, weights, ids) = _experts(bias=False), _pairs(20)
    small = jax.tree.map(lambda kernel: quant.quantize(kernel, (-2,)), experts)
    wide = jax.tree.map(lambda w: w.values * w.scale[:, None], small, is_leaf=lambda w: isinstance(w, quant.QTensor))
    of = lambda run, w: jax.grad(lambda x: jnp.sum(run(x, weights, ids, w, "silu") ** 2))(x)  # noqa: E731
    _close(of(functools.partial(grouped.apply, implementation="blocks"), small), of(_dense, wide))


@pytest.mark.parametrize("implementation", ["loop", "gather", "blocks", "megablox_interpreted"])
def test_adapters_of_experts_give_what_merged_experts_do(implementation):
    experts, (x, weights, ids) = _experts(bias=True), _pairs(20)
    rng = np.random.default_rng(4)
    draw = lambda *shape: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    pairs = [(draw(E, D, 4), draw(E, 4, F)), (draw(E, D, 4), draw(E, 4, F)), (draw(E, F, 4), draw(E, 4, D))]

    def changed(pairs, make):
        kernels = (experts.gate, experts.up, experts.down)
        new = [make(kernel, *pair) for kernel, pair in zip(kernels, pairs, strict=True)]
        return dataclasses.replace(experts, gate=new[0], up=new[1], down=new[2])

    def loss(pairs, run, make):
        y = run(x, weights, ids, changed(pairs, make), "clamped")
        return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y), y

    adapted = lambda kernel, a, b: Adapted(kernel, a, b, 0.5)  # noqa: E731
    merged = lambda kernel, a, b: kernel + 0.5 * jnp.einsum("edr,erf->edf", a, b, precision="highest")  # noqa: E731
    run = functools.partial(grouped.apply, implementation=implementation)
    trains = implementation in ("blocks", "megablox_interpreted")
    both = jax.grad(loss, has_aux=True) if trains else loss
    jax.tree.map(_close, both(pairs, run, adapted), both(pairs, _dense, merged))


@pytest.mark.parametrize("implementation", ["loop", "gather", "blocks", "megablox_interpreted"])
@pytest.mark.parametrize("small", [False, True])
def test_rows_with_their_own_adapters_give_what_merged_experts_do(implementation, small):
    """Sequences with the first adapter, none, and the second one, which is of `down` alone; in layers and stacked."""
    if small and implementation == "megablox_interpreted":
        pytest.skip("multiplies arrays alone")
    rng = np.random.default_rng(5)
    draw = lambda *shape: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    experts, (x, weights, ids) = _experts(bias=True), _pairs(21)
    x, weights, ids = (a.reshape(3, 7, -1) for a in (x, weights, ids))
    names, chosen, scales = ("gate", "up", "down"), jnp.array([0, -1, 1]), jnp.array([0.5, 2.0])
    held = {name: getattr(experts, name) for name in names}
    if small:
        held = {name: quant.quantize(kernel, (-2,)) for name, kernel in held.items()}
        experts = dataclasses.replace(experts, **{n: w.values * w.scale[:, None] for n, w in held.items()})
    adapted, merged = {}, [{}, {}, {}]
    for name in names:
        kernel = getattr(experts, name)
        a, b = draw(E, 2, kernel.shape[1], 4), draw(E, 2, 4, kernel.shape[2])
        if name != "down":
            b = b.at[:, 1].set(0)
        adapted[name] = BatchAdapted(held[name], a, b, scales, chosen)
        for of_one, adapter in zip(merged, chosen.tolist(), strict=True):
            product = 0 if adapter < 0 else scales[adapter] * jnp.einsum("edr,erf->edf", a[:, adapter], b[:, adapter])
            of_one[name] = kernel + product
    stacked = dataclasses.replace(experts, **adapted)
    other = jax.tree.map(jnp.zeros_like, stacked)
    stacked = jax.tree.map(lambda zero, own: jnp.stack([zero, own]), other, stacked)
    # Which adapter a sequence has, and their scales, are the same in all layers.
    same = {n: dataclasses.replace(getattr(stacked, n), chosen=jnp.stack([chosen] * 2), scales=jnp.stack([scales] * 2))
            for n in names}  # fmt: skip
    stacked = dataclasses.replace(stacked, **same, layer=jnp.int32(1))
    want = [
        _dense(x[i : i + 1], weights[i : i + 1], ids[i : i + 1], dataclasses.replace(experts, **of_one), "clamped")
        for i, of_one in enumerate(merged)
    ]
    for held_as in (dataclasses.replace(experts, **adapted), stacked):
        got = jax.jit(functools.partial(grouped.apply, activation="clamped", implementation=implementation))(
            x, weights, ids, held_as
        )
        _close(got, jnp.concatenate(want))
    without = {name: dataclasses.replace(one, chosen=None) for name, one in adapted.items()}
    run = functools.partial(grouped.apply, activation="clamped", implementation=implementation)
    _close(run(x, weights, ids, dataclasses.replace(experts, **without)), _dense(x, weights, ids, experts, "clamped"))


def _reference_route(logits, spec, bias):
    """Weights of all experts [R, E], row by row."""
    out = np.zeros_like(logits)
    for row, logit in zip(out, logits, strict=True):
        if spec.scores == "softmax":
            score = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
        else:
            score = 1 / (1 + np.exp(-logit)) if spec.scores == "sigmoid" else logit
        choice = score + (0 if bias is None else bias)
        groups = choice.reshape(spec.groups, -1)
        of_group = np.sort(groups, axis=1)[:, -2:].sum(1) if bias is not None else groups.max(1)
        kept = np.argsort(-of_group, kind="stable")[: spec.top_groups]
        masked = np.full_like(groups, -np.inf)
        masked[kept] = groups[kept]
        ids = np.argsort(-masked.reshape(-1), kind="stable")[: spec.experts_per_token]
        weight = score[ids]
        if spec.scores == "topk_softmax":
            weight = np.exp(weight - weight.max()) / np.exp(weight - weight.max()).sum()
        elif spec.normalize:
            weight = weight / weight.sum()
        row[ids] = weight * spec.routed_scale
    return out


@pytest.mark.parametrize(
    "spec",
    [
        Experts(8, 2, F),
        Experts(8, 3, F, normalize=True),
        Experts(8, 3, F, scores="topk_softmax"),
        Experts(8, 3, F, groups=4, top_groups=2, routed_scale=1.5),
        Experts(8, 3, F, "sigmoid", True, 2.5, 4, 2, selection_bias=True),
    ],
    ids=["mixtral", "qwen3", "gpt_oss", "deepseek_v2", "deepseek_v3"],
)
def test_router_chooses_and_weighs_as_a_loop_over_rows(spec):
    rng = np.random.default_rng(2)
    logits = rng.normal(scale=2, size=(64, 8)).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32) if spec.selection_bias else None
    weights, ids = router.route(jnp.asarray(logits), spec, bias)
    ours = np.zeros_like(logits)
    np.put_along_axis(ours, np.asarray(ids), np.asarray(weights), axis=1)
    np.testing.assert_allclose(ours, _reference_route(logits, spec, bias), rtol=0, atol=1e-6)


def test_router_breaks_ties_by_number():
    _, ids = router.route(jnp.zeros((1, 8)), Experts(8, 3, F))
    assert ids.tolist() == [[0, 1, 2]]


def test_balanced_load_costs_as_much_as_experts_per_token():
    logits = jnp.zeros((2, 12, 4))
    ids = jnp.asarray(np.arange(48).reshape(2, 12, 2) % 4)
    loads = router.load(logits, ids, jnp.ones((2, 12), bool))
    np.testing.assert_allclose(loads.counts, 12)
    both = jax.tree.map(lambda a: jnp.stack([a, a]), loads)
    np.testing.assert_allclose(router.balance_loss(both, jnp.int32(24)), 2, rtol=1e-6)
