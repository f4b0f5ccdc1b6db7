"""The two written forms of a model, and what its specs add up to."""

import json

import pytest

from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.config.schema import from_dict, to_dict
from s1jax.errors import UserError

FLAT = dict(vocab_size=64, d_model=16, mlp_dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8)
LAYER = Layer(GQA(4, 2, 8), Dense(32))
WIDE = Layer(GQA(4, 2, 8), Dense(48))
NORMED = Layer(GQA(4, 2, 8, qk_norm=True), Dense(32))


def test_the_flat_form_is_one_group_of_equal_layers():
    config = ModelConfig.dense(**FLAT)
    assert config == ModelConfig(vocab_size=64, d_model=16, groups=(Group(3, (LAYER,)),), family="llama")
    for preset in [preset for preset in PRESETS.values() if preset.has_flat_form]:
        assert ModelConfig.dense(**preset.flat()) == preset
    for written in (FLAT, config.flat(), to_dict(config)):
        assert from_dict(ModelConfig, json.loads(json.dumps(written))) == config


@pytest.mark.parametrize(
    ("given", "family"),
    [
        ({}, "llama"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
        ({"qkv_bias": True, "qk_norm": True}, ""),
        ({"family": "smollm3"}, "smollm3"),
    ],
)
def test_the_flat_form_without_a_family_has_the_one_that_it_was_exported_as(given, family):
    assert ModelConfig.dense(**FLAT, **given).family == family


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_dim": 0}, "model.mlp_dim is 0; it must be positive"),
        ({"num_layers": 0}, "model.num_layers is 0; it must be positive"),
        ({"groups": []}, r"config\.\w+ is not a setting; config has context_length, d_model, family, final_softcap, "),
        ({"mlp_dims": 4}, "config.mlp_dims is not a setting; config has .*mlp_dim, "),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        from_dict(ModelConfig, {**FLAT, **changes})


def test_groups_want_layers():
    with pytest.raises(UserError, match="groups is empty"):
        ModelConfig(64, 16, ())
    with pytest.raises(UserError, match="a group without layers"):
        Group(2, ())


def test_layers_that_differ_are_counted_one_by_one_and_have_no_flat_form():
    config = ModelConfig(64, 16, (Group(2, (LAYER, WIDE)), Group(1, (WIDE,))))
    assert config.layers() == [LAYER, WIDE, LAYER, WIDE, WIDE]
    names = [[(stack.name, list(stack.numbers)) for stack in group] for group in config.stacks_of_groups()]
    assert names == [[("layers", [0, 2]), ("layers_0_1", [1, 3])], [("layers_1_0", [4])]]
    assert (config.num_layers, config.num_kv_heads, config.head_dim) == (5, 2, 8)
    narrow, wide = (ModelConfig.dense(**{**FLAT, "num_layers": 1, "mlp_dim": f}).num_params for f in (32, 48))
    assert config.num_params == 2 * narrow + 3 * wide - 4 * (2 * 64 * 16 + 16)
    assert config.mlp_dims == (32, 48)
    with pytest.raises(UserError, match="that differ"):
        config.flat()
    assert ModelConfig(64, 16, (Group(1, (LAYER, NORMED)),)).head_dim == 8
    with pytest.raises(UserError, match="global rope that rotate different numbers"):
        ModelConfig(64, 16, (Group(1, (LAYER, Layer(GQA(4, 2, 8, rotary_dim=4), Dense(32)))),))
    narrow_heads = Layer(GQA(4, 2, 4, rope="none"), Dense(32))
    with pytest.raises(UserError, match="different shapes of the KV cache"):
        ModelConfig(64, 16, (Group(1, (LAYER, narrow_heads)),)).cached_dims  # noqa: B018


def test_layers_of_every_kind_survive_json():
    latent = MLA(4, 0, 16, 8, 8, 8)
    experts = Experts(8, 2, 16, "sigmoid", groups=4, top_groups=2, selection_bias=True, shared_hidden=24)
    window = Layer(GQA(4, 2, 8, window=4, sinks=True), Dense(32, "gelu_tanh"), "both")
    groups = Group(1, (Layer(latent, Dense(32)),)), Group(2, (Layer(latent, experts), window))
    config = ModelConfig(64, 16, groups, local_rope_theta=1e4)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert not config.has_flat_form


def test_a_token_is_multiplied_with_the_chosen_experts_only():
    experts = Experts(8, 2, 16, shared_hidden=24, shared_gate=True)
    config = ModelConfig(64, 16, (Group(3, (Layer(GQA(4, 2, 8), experts),)),))
    assert config.num_params - config.active_params == 3 * 6 * 3 * 16 * 16
    assert experts.num_params(16) == 8 * 16 + 8 * 3 * 16 * 16 + 3 * 16 * 24 + 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Experts(8, 9, 16), "experts_per_token is 9, of 8 experts that can be chosen"),
        (lambda: Experts(8, 3, 16, groups=4, top_groups=1), "experts_per_token is 3, of 2 experts"),
        (lambda: Experts(8, 2, 16, groups=3), "the groups must divide the 8 experts"),
        (lambda: Experts(8, 2, 16, shared_gate=True), "shared_gate is on without a shared expert"),
        (lambda: GQA(4, 2, 8, rotary_dim=10), "rotary_dim is 10; it must be even and at most"),
        (lambda: ModelConfig(64, 16, (Group(1, (Layer(GQA(4, 2, 8, rope="local"), Dense(8)),)),)), "local_rope_theta"),
    ],
)
def test_specs_that_no_model_can_have_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
