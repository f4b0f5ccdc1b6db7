"""Decoders with experts: whole rows, the cache and every layout of weights agree; load-balancing as transformers'."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.experiment import MeshConfig, TrainConfig
from s1jax.config.layers import Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.errors import UserError
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts, quant
from s1jax.model.mlp import grouped, router
from s1jax.parallel import mesh as mesh_lib
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib

DENSE = ModelConfig.dense(
    vocab_size=61, d_model=32, mlp_dim=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, qk_norm=True
)
LAYER = DENSE.groups[0].pattern[0]
SPEC = Experts(
    8, 2, 24, "sigmoid", True, 2.5, 4, 2, selection_bias=True, expert_bias=True, shared_hidden=16, shared_gate=True
)
# A dense layer first, as DeepSeek has, then two with experts.
MODEL = dataclasses.replace(
    DENSE, groups=(Group(1, (LAYER,)), Group(2, (Layer(LAYER.attention, SPEC),))), tied_embeddings=True
)
SOFTMAX = dataclasses.replace(DENSE, groups=(Group(2, (Layer(LAYER.attention, Experts(8, 2, 24)), LAYER)),))
T = 24
TOKENS = np.random.default_rng(1).integers(61, size=(3, T)).astype(np.int32)


@functools.cache
def _params(config):
    rng = np.random.default_rng(0)
    params = decoder.abstract_params(config)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), params)


def _whole(config, params, segment_ids, positions, ids=None):
    """Hidden states [B, T, D] of whole rows, and the experts that every layer chose; `ids` are the tokens."""
    chosen = []

    def record(x, weights, experts_of, experts, activation):
        jax.debug.callback(lambda found: chosen.append(np.asarray(found)), experts_of)
        return grouped.apply(x, weights, experts_of, experts, activation)

    run = functools.partial(decoder.forward, remat="full", experts=record)
    hidden = jax.jit(run, static_argnums=1)(params, config, TOKENS if ids is None else ids, positions, segment_ids)
    jax.effects_barrier()
    return hidden, np.stack(chosen)


POSITIONS = np.broadcast_to(np.arange(T), TOKENS.shape)


@functools.cache
def _rows():
    return _whole(MODEL, _params(MODEL), np.ones_like(TOKENS), POSITIONS)


def test_packed_rows_choose_the_experts_of_whole_ones():
    hidden, chosen = _rows()
    ids = np.concatenate([TOKENS[0, :10], TOKENS[1, :14]])[None]
    positions = np.concatenate([np.arange(10), np.arange(14)])[None]
    packed, ours = _whole(MODEL, _params(MODEL), np.repeat([[1, 2]], [10, 14], axis=1), positions, ids)
    np.testing.assert_allclose(packed[0, :10], hidden[0, :10], rtol=0, atol=1e-5)
    np.testing.assert_allclose(packed[0, 10:], hidden[1, :14], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours[:, 0, :10], chosen[:, 0, :10])
    np.testing.assert_array_equal(ours[:, 0, 10:], chosen[:, 1, :14])


_RUN = jax.jit(decoder.forward_cached, static_argnums=1, static_argnames=("experts",))


def _cached(params, piece, experts=grouped.apply):
    """Hidden states [B, T, D] by pieces of so many tokens."""
    cache = cache_lib.init_cache(MODEL, 3, T, page=8)
    if isinstance(params["layers"], layouts.Unstacked):
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
    found = []
    for start in range(0, T, piece):
        hidden, cache = _RUN(
            params, MODEL, TOKENS[:, start : start + piece], cache, jnp.full(3, piece), experts=experts
        )
        found.append(hidden)
    return jnp.concatenate(found, axis=1)


@pytest.mark.parametrize("piece", [8, 2])
def test_the_cache_gives_the_output_of_whole_rows_in_every_layout(piece):
    """8 tokens of 3 rows are computed in blocks, 2 of them one after the other."""
    hidden, _ = _rows()
    params = _params(MODEL)
    for one in (params, layouts.unstack(params, MODEL, transpose_kernels=True)):
        np.testing.assert_allclose(_cached(one, piece), hidden, rtol=0, atol=2e-5)
    if piece == 8:
        kernel = functools.partial(grouped.apply, implementation="megablox_interpreted")
        np.testing.assert_allclose(_cached(params, piece, kernel), hidden, rtol=0, atol=2e-5)


def test_the_cache_chooses_the_experts_of_whole_rows():
    _, chosen = _rows()
    ours = []

    def record(x, weights, ids, experts, activation):
        jax.debug.callback(lambda found: ours.append(np.asarray(found)), ids, ordered=True)
        return grouped.apply(x, weights, ids, experts, activation)

    _cached(_params(MODEL), 4, record)
    jax.effects_barrier()
    by_layer = np.stack([np.concatenate(ours[layer::2], axis=1) for layer in range(2)])
    np.testing.assert_array_equal(by_layer, chosen)


def test_quantised_experts_give_what_their_dequantised_ones_do_in_every_layout():
    small = quant.quantize_params(_params(MODEL), embedding=False)
    is_small = lambda leaf: isinstance(leaf, quant.QTensor)  # noqa: E731
    assert is_small(small["layers_1_0"]["mlp"]["experts"]["gate"]["kernel"])
    wide = jax.tree.map(
        lambda w: w.values * jnp.expand_dims(w.scale, w.axis) if is_small(w) else w, small, is_leaf=is_small
    )
    expected = _cached(wide, 2)
    for one in (small, layouts.unstack(small, MODEL, transpose_kernels=False)):
        np.testing.assert_allclose(_cached(one, 2), expected, rtol=0, atol=5e-5)


def test_a_decode_step_copies_no_layer_of_experts():
    """Neither stacked nor unstacked: nothing in the compiled program makes an array of all experts of a layer."""
    e, d, f = SPEC.num_experts, MODEL.d_model, SPEC.hidden
    shapes = "|".join(f"{e},{d},{f}" if i else f"{e},{f},{d}" for i in range(2))
    for unstack in (False, True):
        params = _params(MODEL)
        cache = cache_lib.init_cache(MODEL, 1, T, page=8)
        if unstack:
            params = layouts.unstack(params, MODEL, transpose_kernels=True)
            cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
        run = jax.jit(decoder.forward_cached, static_argnums=1)
        text = run.lower(params, MODEL, TOKENS[:1, :1], cache, jnp.ones(1, jnp.int32)).compile().as_text()
        made = re.findall(rf"= f32\[(?:\d,)?(?:{shapes})\]\S* (?!parameter|get-tuple-element|bitcast)([\w-]+)\(", text)
        assert not made, made


def _loss(params, config, policy, sums=None):
    hidden, load = decoder.forward_with_load(
        params, config, TOKENS, POSITIONS, np.ones_like(TOKENS), remat=policy, grad_accumulators=sums
    )
    return jnp.sum(jnp.cos(jnp.arange(hidden.size)).reshape(hidden.shape) * hidden) + router.balance_loss(load, 3 * T)


@pytest.mark.parametrize("policy", ["full", "full:1,save_dots"])
def test_remat_and_sums_of_gradients_change_no_gradient(policy):
    params = _params(SOFTMAX)
    expected = jax.jit(jax.grad(functools.partial(_loss, config=SOFTMAX, policy="none")))(params)
    names = [stack.name for stack in SOFTMAX.stacks()]
    ones = {name: jax.tree.map(jnp.ones_like, params[name]) for name in names}
    added = jax.jit(jax.grad(lambda sums: _loss(params, SOFTMAX, policy, sums)))(ones)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))  # noqa: E731
    jax.tree.map(close, added, {name: jax.tree.map(lambda g: g + 1, expected[name]) for name in names})


def test_the_selection_bias_is_frozen_and_only_matrices_decay():
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    train = TrainConfig(batch_size=3, compute_dtype="float32")
    optimizer = step_lib.OptimizerConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup_fraction=0)
    tx = optimizer_lib.make(optimizer, MODEL, 10)
    params = jax.tree.map(jnp.copy, _params(MODEL))
    state = step_lib.init_state(params, tx, step_lib.abstract_state(MODEL, tx, mesh, "float32"))
    step = step_lib.make_step(
        MODEL, train, optimizer, 10, tx, mesh, step_lib.abstract_state(MODEL, tx, mesh, "float32")
    )
    batch = {
        "tokens": TOKENS, "targets": TOKENS, "positions": POSITIONS, "segment_ids": np.ones_like(TOKENS),
        "weights": np.ones(TOKENS.shape, np.float32),
    }  # fmt: skip
    state, metrics = step(state, {name: jnp.asarray(array) for name, array in batch.items()})
    before, after = (tree["layers_1_0"]["mlp"] for tree in (_params(MODEL), state.params))
    np.testing.assert_array_equal(after["router"]["selection_bias"], before["router"]["selection_bias"])
    assert np.abs(after["router"]["kernel"] - before["router"]["kernel"]).max() > 0.05
    matrices = optimizer_lib.is_matrix(MODEL)["layers_1_0"]["mlp"]
    assert matrices["experts"]["gate"] == {"kernel": True, "bias": False} and not matrices["router"]["selection_bias"]
    assert metrics["router_max_load"] >= 1 and 0 <= metrics["router_dead_experts"] < 16


def test_load_balancing_is_refused_where_it_is_not_defined():
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    train = TrainConfig(router_aux_loss=0.01)
    for config, why in ((DENSE, "no experts"), (MODEL, "sigmoid")):
        with pytest.raises(UserError, match=f"router_aux_loss is 0.01, but.*{why}"):
            step_lib.make_loss(config, train, mesh)


def test_load_balancing_is_that_of_transformers():
    """Two layers pooled, rows of different lengths, padding left out; value and gradient for the logits."""
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 3, T, 8)).astype(np.float32)
    valid = np.arange(T) < np.array([[T], [7], [13]])
    theirs = torch.tensor(logits.reshape(2, 3 * T, 8), requires_grad=True)
    value = load_balancing_loss_func(tuple(theirs), 8, 2, torch.tensor(valid))
    value.backward()

    def loss(logits):
        loads = [router.load(one, router.route(one, Experts(8, 2, 24))[1], valid) for one in logits]
        return router.balance_loss(jax.tree.map(lambda *a: jnp.stack(a), *loads), jnp.int32(valid.sum()))

    ours, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(ours, value.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient.reshape(theirs.shape), theirs.grad, rtol=0, atol=1e-7)
