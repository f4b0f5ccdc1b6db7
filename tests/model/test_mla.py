"""Latent attention: against transformers' DeepSeek whose layers are all dense, and the cache against whole rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.config.layers import MLA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.model import cache as cache_lib
from s1jax.model import decoder, layouts, linear, quant, quant_groups
from s1jax.model.attention import absorb, cached
from tests.engine import cases, reference
from tests.model import parity_cases

YARN = RopeScaling("yarn", 8.0, 40, mscale=0.707, mscale_all_dim=0.707)


def config(attention: MLA, scaling: RopeScaling | None = YARN) -> ModelConfig:
    """A model of two layers, longer rows than the original context of YaRN."""
    groups = (Group(2, (Layer(attention, Dense(48)),)),)
    return ModelConfig(61, 36, groups, rope_theta=1e4, rope_scaling=scaling, norm_eps=1e-5)


# As V2-Lite without a latent vector of queries, as V3 with one; every dimension different.
CASES = {
    "deepseek_v2": config(MLA(num_heads=3, q_rank=0, kv_rank=20, nope_dim=12, rope_dim=8, value_dim=10)),
    "deepseek_v3": config(MLA(num_heads=4, q_rank=14, kv_rank=24, nope_dim=10, rope_dim=6, value_dim=12)),
    "deepseek_v3_unscaled": config(
        MLA(num_heads=2, q_rank=9, kv_rank=16, nope_dim=8, rope_dim=8, value_dim=8), scaling=None
    ),
}
V3 = CASES["deepseek_v3"]


def weights(model: ModelConfig, seed: int = 0) -> dict:
    """Random float32 weights; norms are far from 1."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if "norm" in path[-2].key:
            return np.float32(1 + 0.3 * noise)
        inputs = leaf.shape[-1] if path[-1].key == "embedding" else leaf.shape[-2]
        return np.float32(noise * (0.7 if path[-1].key == "embedding" else 1.2 / np.sqrt(inputs)))

    return jax.tree_util.tree_map_with_path(fill, decoder.abstract_params(model))


def transformers_model(name: str, params: dict):
    """transformers' model; its tensors are made here, so that nothing of s1jax's conversion is believed."""
    import torch
    import transformers

    model = CASES[name]
    spec = model.groups[0].pattern[0].attention
    scaling = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling is not None:
        one = model.rope_scaling
        scaling |= {
            "rope_type": "yarn",
            "factor": one.factor,
            "original_max_position_embeddings": one.original_context_length,
            "mscale": one.mscale,
            "mscale_all_dim": one.mscale_all_dim,
        }
    kind = "DeepseekV2" if "v2" in name else "DeepseekV3"
    shape = getattr(transformers, f"{kind}Config")(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        intermediate_size=48,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_heads,
        q_lora_rank=spec.q_rank or None,
        kv_lora_rank=spec.kv_rank,
        qk_nope_head_dim=spec.nope_dim,
        qk_rope_head_dim=spec.rope_dim,
        v_head_dim=spec.value_dim,
        rms_norm_eps=model.norm_eps,
        rope_parameters=scaling,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(shape)
    state = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params["head"]["kernel"].T,
    }
    layers = params["layers"]
    for i in range(2):
        own = jax.tree.map(lambda a, i=i: a[i], layers)
        attention, at = own["attention"], f"model.layers.{i}.self_attn."
        state[f"model.layers.{i}.input_layernorm.weight"] = own["attention_norm"]["scale"]
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = own["mlp_norm"]["scale"]
        for part in ("gate", "up", "down"):
            state[f"model.layers.{i}.mlp.{part}_proj.weight"] = own["mlp"][part]["kernel"].T
        state |= {at + key: value for key, value in _attention_state(attention, spec).items()}
    found = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}
    theirs.load_state_dict(found, strict=True)
    return theirs.to(torch.float32).eval()


def _attention_state(attention: dict, spec: MLA) -> dict[str, np.ndarray]:
    order = np.arange(spec.rope_dim).reshape(2, -1).T.reshape(-1)  # of neighbours, from ours, which are halves

    def queries(kernel):
        kernel = np.concatenate([kernel[..., : spec.nope_dim], kernel[..., spec.nope_dim :][..., order]], axis=-1)
        return kernel.reshape(kernel.shape[0], -1).T

    latent = attention["latent"]["kernel"]
    up = np.concatenate([attention["key_up"]["kernel"], attention["value_up"]["kernel"]], axis=-1)
    found = {
        "kv_a_proj_with_mqa.weight": np.concatenate(
            [latent[:, : spec.kv_rank], latent[:, spec.kv_rank :][:, order]], axis=1
        ).T,
        "kv_a_layernorm.weight": attention["latent_norm"]["scale"],
        "kv_b_proj.weight": up.reshape(spec.kv_rank, -1).T,
        "o_proj.weight": attention["out"]["kernel"].reshape(-1, attention["out"]["kernel"].shape[-1]).T,
    }
    if not spec.q_rank:
        return {**found, "q_proj.weight": queries(attention["query"]["kernel"])}
    return {
        **found,
        "q_a_proj.weight": attention["query_down"]["kernel"].T,
        "q_a_layernorm.weight": attention["query_down_norm"]["scale"],
        "q_b_proj.weight": queries(attention["query_up"]["kernel"]),
    }


@functools.partial(jax.jit, static_argnums=1, static_argnames="implementation")
def whole(params, model, tokens, positions, segment_ids, implementation="xla"):
    """Logits of rows."""
    from s1jax.model.attention import dispatch

    attend = functools.partial(dispatch.attend, implementation=implementation)
    hidden = decoder.forward(params, model, tokens, positions, segment_ids, attend=attend)
    return decoder.logits(params, model, hidden)


@functools.partial(jax.jit, static_argnums=1)
def piece(params, model, tokens, cache, count):
    """Logits of new tokens, and the cache with them."""
    attend = functools.partial(cached.attend_cached, pages_at_once=2)
    hidden, cache = decoder.forward_cached(params, model, tokens, cache, count, attend=attend)
    return decoder.logits(params, model, hidden), cache


def rows(model: ModelConfig, ids: np.ndarray, lengths=None) -> tuple:
    """Arguments of `whole` for rows [B, T]."""
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    lengths = np.full(len(ids), ids.shape[1]) if lengths is None else np.asarray(lengths)
    return ids, places, (places < lengths[:, None]).astype(np.int32)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name):
    pytest.importorskip("torch", reason="live parity needs torch")
    pytest.importorskip("transformers", reason="live parity needs transformers")
    model, params = CASES[name], weights(CASES[name])
    theirs = transformers_model(name, params)
    ids, lengths = parity_cases.tokens(model, (3, 120)), [120, 77, 1]
    args = rows(model, ids, lengths)
    real = args[2] > 0
    want = parity_cases.transformers_logits(theirs, ids, real)
    assert want[real].std() > 0.5
    np.testing.assert_allclose(whole(params, model, *args)[real], want[real], rtol=0, atol=1e-4)
    parts = [ids[0, :60], ids[1, 3:4], ids[2, :45]]
    alone = [parity_cases.transformers_logits(theirs, part[None])[0] for part in parts]
    got = whole(params, model, *parity_cases.packed(parts, 120))[0]
    np.testing.assert_allclose(got[:106], np.concatenate(alone), rtol=0, atol=1e-4)
    again = run_cached(params, model, ids, (50, 30, 1), layouts=False)
    np.testing.assert_allclose(again[:, :81], whole(params, model, *rows(model, ids))[:, :81], rtol=0, atol=1e-4)


def run_cached(params, model, ids, pieces, layouts: bool = False, dtype=jnp.float32):
    """Logits of rows that are written to the cache piece by piece."""
    cache = cache_lib.init_cache(model, len(ids), ids.shape[1], dtype, page=8)
    if layouts:
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
    found, start = [], 0
    for length in pieces:
        logits, cache = piece(params, model, ids[:, start : start + length], cache, jnp.full(len(ids), length))
        found.append(logits)
        start += length
    return np.concatenate(found, axis=1)


@pytest.fixture(scope="module")
def v3():
    """Weights, two rows and their logits."""
    params, ids = weights(V3), parity_cases.tokens(V3, (2, 45))
    return params, ids, np.asarray(whole(params, V3, *rows(V3, ids)))


def test_the_cache_gives_the_logits_of_whole_rows(v3):
    params, ids, want = v3
    np.testing.assert_allclose(run_cached(params, V3, ids, (30, 13, 1, 1)), want, rtol=0, atol=1e-4)
    for transpose in (False, True):
        own = layouts.unstack(params, V3, transpose)
        got = run_cached(own, V3, ids, (30, 13, 1, 1), layouts=True)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_an_int8_cache_and_int8_weights(v3):
    params, ids, want = v3
    scale = want.std()
    int8 = run_cached(params, V3, ids, (44, 1), dtype=jnp.int8)
    assert 1e-3 < np.abs(int8 - want).std() / scale < 0.02
    # Rotated keys ten times larger, their queries smaller: the same scores, and latent vectors keep their precision.
    spec, loud = V3.groups[0].pattern[0].attention, jax.tree.map(np.array, params)
    loud["layers"]["attention"]["latent"]["kernel"][..., spec.kv_rank :] *= 10
    loud["layers"]["attention"]["query_up"]["kernel"][..., spec.nope_dim :] /= 10
    again = run_cached(loud, V3, ids, (44, 1), dtype=jnp.int8)
    np.testing.assert_allclose(again, int8, rtol=0, atol=0.02)
    quantised = quant.quantize_params(params)
    meant = jax.tree.map(
        lambda x: _float(x) if isinstance(x, quant.QTensor) else x,
        quantised,
        is_leaf=lambda x: isinstance(x, quant.QTensor),
    )
    dense = run_cached(meant, V3, ids, (44, 1))
    for tree, pages in ((quantised, False), (layouts.unstack(quantised, V3, False), True)):
        got = run_cached(tree, V3, ids, (44, 1), layouts=pages)
        np.testing.assert_allclose(got, dense, rtol=0, atol=1e-3)


def _float(x: quant.QTensor) -> np.ndarray:
    return np.asarray(x.values, np.float32) * np.expand_dims(np.asarray(x.scale), tuple(x.axis))


def test_chunked_attention_and_its_gradient(v3):
    """Values narrower than keys."""
    params, ids, want = v3
    args = rows(V3, ids, [45, 31])
    real = args[2] > 0
    got = whole(params, V3, *args, implementation="chunked")
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-4)
    gradients = [
        jax.grad(lambda p, i=i: jnp.sum(jnp.sin(whole(p, V3, *args, implementation=i)) * real[..., None]))(params)
        for i in ("xla", "chunked")
    ]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), *gradients)


def test_the_engine_samples_what_whole_rows_say():
    """Greedy, with budgets and waits, over unstacked pages and transposed kernels."""
    params, rng = (
        jax.device_put(jax.tree.map(lambda a: a * 2 if a.ndim > 2 else a, weights(V3))),
        np.random.default_rng(5),
    )
    delimiters = cases.random_delimiters(rng)
    requests = [
        EncodedRequest(tuple(range(1, n)), cases.random_controls(rng, sampled=False), cases.random_wait(rng))
        for n in (4, 9, 2, 30)
    ]
    engine = Engine(params, config=V3, slots=3, cache_length=96)
    found = dict(engine.sample(requests, delimiters))

    def next_logits(ids):
        row = np.zeros((1, 96), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(whole(params, V3, *rows(V3, row, [len(ids)])))[0, len(ids) - 1]

    for i, request in enumerate(requests):
        want = reference.run(next_logits, request.prompt, request.params, delimiters, request.wait)
        assert list(found[i].ids) == want.ids and len(want.ids) > 3


def test_the_cache_holds_latent_vectors_alone():
    spec = V3.groups[0].pattern[0].attention
    pages = jax.eval_shape(lambda: cache_lib.init_pages(V3, 5, 8))
    assert pages.values is None and pages.keys.shape == (2, 5, 1, spec.kv_rank + spec.rope_dim, 8)
    assert cache_lib.bytes_per_token(V3, jnp.bfloat16) == 2 * 2 * (spec.kv_rank + spec.rope_dim)
    assert cache_lib.bytes_per_token(V3, jnp.int8) == 2 * (spec.kv_rank + spec.rope_dim + 8)


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_decode_step_never_expands_the_cache(unstacked):
    """No array of the compiled step has a head's keys or values for all tokens of the cache, or of its pages."""
    spec = V3.groups[0].pattern[0].attention
    params = weights(V3)
    cache = cache_lib.init_cache(V3, 2, 112, page=28)
    if unstacked:
        params = layouts.unstack(params, V3, True)
        cache = dataclasses.replace(cache, pages=cache_lib.unstack(cache.pages))
    args = params, V3, jnp.zeros((2, 1), jnp.int32), cache, jnp.ones(2, jnp.int32)
    text = piece.lower(*args).compile().as_text()
    tokens = {112, 2 * 112, 28, 2 * 28}  # of a row, of both rows, of a page, of the pages read at once
    dims = {spec.head_dim, spec.nope_dim, spec.value_dim}
    wide = []
    for shape in {tuple(map(int, found.split(","))) for found in _shapes(text)}:
        heads = {spec.num_heads, spec.num_heads * 2}
        if tokens & set(shape) and dims & set(shape) and (heads & set(shape)):
            wide.append(shape)
    assert not wide
    assert any(spec.kv_rank + spec.rope_dim in map(int, found.split(",")) for found in _shapes(text))


def _shapes(text: str) -> list[str]:
    import re

    return re.findall(r"f32\[([\d,]+)\]", text)


def test_products_with_the_adapter_of_each_sequence():
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    kernel, a, b, scales = draw(6, 3, 4), draw(2, 6, 2), draw(2, 2, 12), jnp.array([0.5, 2.0])
    heads, latent, chosen = draw(3, 5, 3, 4), draw(3, 5, 3, 6), [1, -1, 0]
    added = [scales[i] * (a[i] @ b[i]).reshape(kernel.shape) * (i >= 0) for i in chosen]
    merged = jnp.stack([kernel + one for one in added])
    transposed = layouts.TransposedKernel(kernel.reshape(6, -1).T)
    for base in (kernel, transposed):
        weight = linear.BatchAdapted(base, a, b, scales, jnp.array(chosen))
        want = np.einsum("btnh,brnh->btnr", heads, merged), np.einsum("btnr,brnh->btnh", latent, merged)
        np.testing.assert_allclose(absorb.to_latent(heads, weight), want[0], rtol=0, atol=2e-5)
        np.testing.assert_allclose(absorb.from_latent(latent, weight), want[1], rtol=0, atol=2e-5)
        alone = absorb.to_latent(heads, dataclasses.replace(weight, chosen=None))
        np.testing.assert_array_equal(alone, absorb.to_latent(heads, base))


def test_products_with_every_kind_of_weight():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.standard_normal((6, 3, 4)), jnp.float32)
    heads, latent = (jnp.asarray(rng.standard_normal((2, 5, 3, n)), jnp.float32) for n in (4, 6))
    quantised = quant.quantize(kernel, (-3,))
    transposed = layouts.TransposedKernel(kernel.reshape(6, -1).T)
    meant = jnp.asarray(_float(quantised))
    groups = quant_groups.quantize_groups(jnp.tile(kernel, (6, 1, 1))[:32], 1, "nf4", 32)
    weights_of = [(kernel, kernel), (transposed, kernel), (quantised, meant)]
    wide = jnp.asarray(rng.standard_normal((2, 5, 3, 32)), jnp.float32)
    want = np.einsum("btnr,rnh->btnh", wide, groups.dequantize(jnp.float32))
    np.testing.assert_allclose(absorb.from_latent(wide, groups), want, rtol=0, atol=1e-5)
    for weight, dense in weights_of:
        want = np.einsum("btnh,rnh->btnr", heads, dense), np.einsum("btnr,rnh->btnh", latent, dense)
        got = absorb.to_latent(heads, weight), absorb.from_latent(latent, weight)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
