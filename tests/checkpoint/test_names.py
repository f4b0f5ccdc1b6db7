"""The table of tensor names: one to one, and views that share our memory."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint import names
from s1jax.checkpoint.families import rows as rows_lib
from s1jax.checkpoint.families import table
from s1jax.checkpoint.families.rows import Row
from s1jax.checkpoint.families.table import FAMILIES
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.errors import UserError
from tests.model.parity_cases import CASES

EVERYTHING = ModelConfig.dense(
    vocab_size=7,
    d_model=6,
    mlp_dim=5,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_no_name_and_no_path_occurs_twice(family):
    """In a column, but for names that several arrays share."""
    for column in ("huggingface", "gguf"):
        rows = [row for row in family.rows if getattr(row, column)]
        plain = [getattr(row, column) for row in rows if not row.join]
        joined = {getattr(row, column) for row in rows if row.join}
        assert len({*plain} | joined) == len(plain) + len(joined)
        paths = [(row.path, "".join(sorted(row.stored))) for row in rows]
        assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("column", ["huggingface", "gguf"])
def test_every_element_of_ours_is_reached_exactly_once(column):
    params = names.allocate(EVERYTHING, np.int64)
    views = names.views(EVERYTHING, params, column)
    total = 0
    for view in views.values():
        view[...] = np.arange(total, total + view.size).reshape(view.shape)
        total += view.size
    flat = np.concatenate([leaf.ravel() for leaf in _leaves(params)])
    assert sorted(flat) == list(range(total)) and total == EVERYTHING.num_params


def test_layouts_are_those_of_torch_linear():
    """W[out, in] with out = head * H + h, against an einsum over our axes."""
    params = names.allocate(EVERYTHING, np.float64)
    views = names.views(EVERYTHING, params, "huggingface")
    rng = np.random.default_rng(0)
    for view in views.values():
        view[...] = rng.normal(size=view.shape)
    attention, x = params["layers"]["attention"], rng.normal(size=6)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        query = views[prefix + "self_attn.q_proj.weight"] @ x + views[prefix + "self_attn.q_proj.bias"]
        ours = np.einsum("d,dnh->nh", x, attention["query"]["kernel"][layer]) + attention["query"]["bias"][layer]
        np.testing.assert_allclose(query.reshape(4, 2), ours)
        out = views[prefix + "self_attn.o_proj.weight"] @ query
        np.testing.assert_allclose(out, np.einsum("nh,nhd->d", ours, attention["out"]["kernel"][layer]))
        np.testing.assert_allclose(
            views[prefix + "mlp.down_proj.weight"] @ np.ones(5), params["layers"]["mlp"]["down"]["kernel"][layer].sum(0)
        )
    np.testing.assert_allclose(views["lm_head.weight"] @ x, x @ params["head"]["kernel"])


@pytest.mark.parametrize("name", CASES)
def test_sizes_add_up_to_the_number_of_weights(name):
    config = CASES[name]
    assert sum(leaf.size for leaf in _leaves(names.allocate(config, np.int8))) == config.num_params


@pytest.mark.parametrize("shape", [(3,), (300, 700), (256, 1), (1, 513)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_copy_equals_assignment_in_any_memory_order(shape, dtype):
    source = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for target, origin in (
        (np.zeros(shape, dtype), source),
        (np.zeros(shape[::-1], dtype).T, source),
        (np.zeros(shape, dtype), np.asfortranarray(source)),
    ):
        names.copy(target, origin)
        np.testing.assert_array_equal(target, source.astype(dtype))


def _leaves(tree):
    if not isinstance(tree, dict):
        return [tree]
    return [leaf for value in tree.values() for leaf in _leaves(value)]


@pytest.mark.parametrize("column", ["huggingface", "gguf"])
@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_the_views(name, column):
    views = names.views(CASES[name], names.allocate(CASES[name], np.int8), column)
    assert names.shapes(CASES[name], column) == {tensor: view.shape for tensor, view in views.items()}


_EXPERTS = Experts(3, 2, 5, router_bias=True, selection_bias=True, expert_bias=True, shared_hidden=4, shared_gate=True)
_DENSE = Dense(5)
_EVERY_ARRAY = ModelConfig(
    vocab_size=7,
    d_model=6,
    groups=(
        Group(2, (Layer(GQA(4, 2, 2, qkv_bias=True, out_bias=True, qk_norm_whole=True, sinks=True), _DENSE, "both"),)),
        Group(3, (Layer(MLA(2, 3, 4, 5, 2, 3), _EXPERTS, "post"),)),
        Group(1, (Layer(MLA(2, 0, 4, 5, 2, 3), Dense(8)),)),
    ),
)


@pytest.mark.parametrize("column", ["huggingface", "gguf"])
def test_models_of_no_family_have_a_place_for_every_array(column):
    params = names.allocate(_EVERY_ARRAY, np.float32)
    assert sum(leaf.size for leaf in _leaves(params)) == _EVERY_ARRAY.num_params
    views = names.views(_EVERY_ARRAY, params, column)
    assert {tensor: view.shape for tensor, view in views.items()} == names.shapes(_EVERY_ARRAY, column)
    total = 0
    for view in views.values():
        view[...] = np.arange(total, total + view.size).reshape(view.shape)
        np.testing.assert_array_equal(np.asarray(view).ravel(), np.arange(total, total + view.size))
        total += view.size
    assert sorted(np.concatenate([leaf.ravel() for leaf in _leaves(params)])) == list(range(total))


def test_a_family_without_a_name_for_an_array_says_so():
    config = dataclasses.replace(EVERYTHING, groups=_EVERY_ARRAY.groups[1:2], family="qwen2")
    with pytest.raises(
        UserError, match=r"model.family is 'qwen2', whose files have no tensor for attention/key_up/kern"
    ):
        names.shapes(config, "huggingface")


def _views_of(rows, layer, params, column="huggingface"):
    config = ModelConfig(vocab_size=7, d_model=6, groups=(Group(1, (layer,)),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "rows", lambda _: rows_lib.EMBED + rows + rows_lib.HEAD)
        return names.views(config, params(config), column)


def test_one_stored_tensor_may_hold_several_arrays():
    """One after the other along an axis, or taking turns."""
    attention, rng = GQA(2, 1, 2), np.random.default_rng(0)
    layer = Layer(attention, Dense(3))
    rows = (
        *rows_lib.ATTENTION_NORM,
        Row("{}.qkv", "", "attention/query/kernel", "NH D", join="N"),
        Row("{}.qkv", "", "attention/key/kernel", "KH D", join="K"),
        Row("{}.qkv", "", "attention/value/kernel", "KH D", join="K"),
        *rows_lib.OUT,
        *rows_lib.MLP_NORM,
        Row("{}.gate_up", "", "mlp/gate/kernel", "D F", join="F", alternating=True),
        Row("{}.gate_up", "", "mlp/up/kernel", "D F", join="F", alternating=True),
        rows_lib.MLP[2],
    )
    kept = {}

    def params(config):
        kept.update(names.allocate(config, np.float64))
        return kept

    views = _views_of(rows, layer, params)
    qkv, gate_up = rng.normal(size=(8, 6)), rng.normal(size=(6, 6))
    views["0.qkv"][...], views["0.gate_up"][...] = qkv, gate_up
    ours = kept["layers"]["attention"]
    np.testing.assert_array_equal(ours["query"]["kernel"][0], qkv[:4].T.reshape(6, 2, 2))
    np.testing.assert_array_equal(ours["key"]["kernel"][0], qkv[4:6].T.reshape(6, 1, 2))
    np.testing.assert_array_equal(ours["value"]["kernel"][0], qkv[6:].T.reshape(6, 1, 2))
    np.testing.assert_array_equal(kept["layers"]["mlp"]["gate"]["kernel"][0], gate_up[:, 0::2])
    np.testing.assert_array_equal(kept["layers"]["mlp"]["up"]["kernel"][0], gate_up[:, 1::2])
    np.testing.assert_array_equal(np.asarray(views["0.qkv"]), qkv)
    out = np.zeros((6, 6), np.float32)
    names.copy(out, views["0.gate_up"])
    np.testing.assert_array_equal(out, gate_up.astype(np.float32))


def test_pairs_of_a_rotation_become_halves():
    """DeepSeek's rows 0 1 2 3 of the rotated part are ours 0 2 1 3."""
    config = ModelConfig(vocab_size=7, d_model=6, groups=(Group(1, (Layer(MLA(1, 0, 2, 1, 4, 2), Dense(3)),)),))
    params = names.allocate(config, np.float32)
    latent = names.views(config, params, "huggingface")["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
    latent[...] = np.arange(6)[:, None] * np.ones(6)
    np.testing.assert_array_equal(params["layers"]["attention"]["latent"]["kernel"][0, 0], [0, 1, 2, 4, 3, 5])
    np.testing.assert_array_equal(np.asarray(latent)[:, 3], np.arange(6))
