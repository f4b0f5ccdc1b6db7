"""Every field of the specs of layers and of rotary scaling changes a shape, the set of tensors or the logits."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from s1jax.checkpoint import names
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.rope import RopeScaling
from s1jax.model import decoder, rope
from tests.model.test_parity import CHANGED as FLAT

_EXPERTS = Experts(8, 3, 12, scores="sigmoid", groups=4, top_groups=2)
_PLAIN = Layer(GQA(4, 2, 8), Dense(20))


def _model(layer: Layer, **more) -> ModelConfig:
    settings = dict(
        vocab_size=31,
        d_model=16,
        groups=(Group(1, (layer,)),),
        rope_theta=50.0,
        local_rope_theta=7.0,
        rope_scaling=RopeScaling("yarn", 4.0, 4),
    )
    return ModelConfig(**{**settings, **more})


BASE = _model(_PLAIN)
LOCAL = _model(dataclasses.replace(_PLAIN, attention=GQA(4, 2, 8, rope="local")))
ROUTED = _model(dataclasses.replace(_PLAIN, mlp=_EXPERTS))
SHARED = _model(dataclasses.replace(_PLAIN, mlp=dataclasses.replace(_EXPERTS, shared_hidden=4)))
LATENT = _model(Layer(MLA(2, 6, 8, 4, 4, 6), Dense(20)))

# Class -> field -> (model, another value).
CHANGES = {
    GQA: {
        "num_heads": (BASE, 2), "num_kv_heads": (BASE, 4), "head_dim": (BASE, 4), "qkv_bias": (BASE, True),
        "qk_norm": (BASE, True), "out_bias": (BASE, True), "qk_norm_whole": (BASE, True), "rope": (BASE, "none"),
        "rotary_dim": (BASE, 4), "window": (BASE, 3), "sinks": (BASE, True), "softcap": (BASE, 1.0),
        "query_scale": (BASE, 1.0), "position_scaling": (BASE, 1.0),
    },
    MLA: {
        "num_heads": (LATENT, 3), "q_rank": (LATENT, 0), "kv_rank": (LATENT, 6), "nope_dim": (LATENT, 6),
        "rope_dim": (LATENT, 2), "value_dim": (LATENT, 4),
    },
    Dense: {"hidden": (BASE, 12), "activation": (BASE, "gelu_tanh")},
    Experts: {
        "num_experts": (ROUTED, 12), "experts_per_token": (ROUTED, 2), "hidden": (ROUTED, 8),
        "scores": (ROUTED, "softmax"), "normalize": (ROUTED, True), "routed_scale": (ROUTED, 2.0),
        "groups": (ROUTED, 2), "top_groups": (ROUTED, 3), "selection_bias": (ROUTED, True),
        "router_bias": (ROUTED, True), "expert_bias": (ROUTED, True), "activation": (ROUTED, "clamped"),
        "shared_hidden": (ROUTED, 4), "shared_gate": (SHARED, True),
    },
    Layer: {"attention": (BASE, GQA(2, 2, 8)), "mlp": (BASE, _EXPERTS), "norms": (BASE, "both")},
    ModelConfig: {
        "groups": (BASE, (Group(2, (_PLAIN,)),)), "local_rope_theta": (LOCAL, 3.0), "norm_offset": (BASE, True),
        "scale_embeddings": (BASE, True), "final_softcap": (BASE, 1.0),
    },
}  # fmt: skip
FIELDS = [
    (kind, field.name)
    for kind in CHANGES
    for field in dataclasses.fields(kind)
    if field.name not in FLAT or kind is not ModelConfig
]


def _replaced(config: ModelConfig, kind: type, field: str, value) -> ModelConfig:
    """The model with another value in the one spec of that class."""
    if kind is ModelConfig:
        return dataclasses.replace(config, **{field: value})
    layer = config.groups[0].pattern[0]
    if kind is Layer:
        layer = dataclasses.replace(layer, **{field: value})
    else:
        part = "attention" if kind in (GQA, MLA) else "mlp"
        layer = dataclasses.replace(layer, **{part: dataclasses.replace(getattr(layer, part), **{field: value})})
    return dataclasses.replace(config, groups=(Group(1, (layer,)),))


def _shapes(config: ModelConfig):
    return jax.tree.map(lambda leaf: leaf.shape, dict(decoder.abstract_params(config, np.float32)))


@functools.cache
def _logits(config: ModelConfig) -> np.ndarray:
    """float32 [1, 12, V], of weights that are the same for models of the same shapes."""
    params, rng = names.allocate(config, np.float32), np.random.default_rng(0)
    for leaf in jax.tree.leaves(params):
        leaf[...] = rng.standard_normal(leaf.shape) * 0.5
    place = np.arange(12, dtype=np.int32)[None]

    @jax.jit
    def run(params):
        hidden = decoder.forward(params, config, place % config.vocab_size, place, np.ones_like(place))
        return decoder.logits(params, config, hidden)

    return np.asarray(run(params))


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind.__name__}.{field}" for kind, field in FIELDS])
def test_every_field_of_a_spec_is_live(kind, field):
    config, value = CHANGES[kind][field]
    changed = _replaced(config, kind, field, value)
    assert changed != config
    if _shapes(changed) != _shapes(config):
        table = jax.tree.map(lambda leaf: leaf.shape, names.allocate(changed, np.float32))
        assert table == _shapes(changed)
        return
    assert np.abs(_logits(changed) - _logits(config)).max() > 1e-2


_LLAMA3 = RopeScaling("llama3", 8.0, 64)
_YARN = RopeScaling("yarn", 8.0, 64, mscale=0.7, mscale_all_dim=0.9)
_LONG = RopeScaling("longrope", 8.0, 64, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4)
SCALINGS = {
    "kind": (RopeScaling("linear", 8.0, 64), "llama3"), "factor": (_YARN, 4.0),
    "original_context_length": (_YARN, 32), "low_freq_factor": (_LLAMA3, 2.0), "high_freq_factor": (_LLAMA3, 8.0),
    "beta_fast": (_YARN, 2.0), "beta_slow": (_YARN, 3.0), "truncate": (_YARN, False), "attention_factor": (_YARN, 1.5),
    "mscale": (_YARN, 0.5), "mscale_all_dim": (_YARN, 0.5), "short_factor": (_LONG, (1.5,) * 4),
    "long_factor": (_LONG, (3.0,) * 4),
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RopeScaling)])
def test_every_field_of_rotary_scaling_is_live(field):
    scaling, value = SCALINGS[field]

    def computed(scaling):
        both = [rope.multipliers(8, 100.0, scaling, is_long) for is_long in (False, True)]
        return np.array([*both[0], *both[1], rope.attention_factor(scaling), rope.score_factor(scaling)])

    changed = dataclasses.replace(scaling, **{field: value})
    assert np.abs(computed(changed) - computed(scaling)).max() > 1e-3
