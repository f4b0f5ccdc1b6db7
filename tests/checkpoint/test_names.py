"""The table of tensor names: one to one, and views that share our memory."""

import ml_dtypes
import numpy as np
import pytest

from s1jax.checkpoint import names
from s1jax.config.model import ModelConfig
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


def test_no_name_and_no_path_occurs_twice():
    for column in ("huggingface", "gguf", "path"):
        values = [getattr(row, column) for row in names.TABLE]
        assert len(set(values)) == len(values)


def test_axes_of_both_sides_are_the_same_letters():
    for row in names.TABLE:
        assert sorted(row.axes) == sorted(row.stored.replace(" ", "")), row


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
