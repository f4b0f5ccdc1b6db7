"""Engines whose weights are held in MXFP4 or FP8 against engines with the dequantised weights."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import s1jax
from s1jax.checkpoint import store
from s1jax.config.experiment import MeshConfig
from s1jax.config.layers import GQA, MLA, Dense, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.model.quant_groups import GroupQTensor
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import quantized
from tests.engine import cases

_FULL = GQA(4, 2, 8, qkv_bias=True, out_bias=True, sinks=True)
_OSS = Experts(8, 2, 32, scores="topk_softmax", router_bias=True, expert_bias=True, activation="clamped")
GPT_OSS = ModelConfig(cases.V, 64, (Group(2, (Layer(_FULL, _OSS),)),), context_length=96)
_SIGMOID = Experts(8, 2, 32, "sigmoid", True, groups=4, top_groups=2, selection_bias=True, shared_hidden=32)
_MLA = MLA(num_heads=4, q_rank=32, kv_rank=16, nope_dim=8, rope_dim=8, value_dim=8)
DEEPSEEK = ModelConfig(
    cases.V, 64, (Group(1, (Layer(_MLA, Dense(128)),)), Group(1, (Layer(_MLA, _SIGMOID),))), context_length=96
)
MODELS = {"mxfp4": GPT_OSS, "fp8": DEEPSEEK}


def is_small(leaf) -> bool:
    return isinstance(leaf, GroupQTensor)


def dequantised(tree):
    return jax.tree.map(lambda leaf: leaf.dequantize("float32") if is_small(leaf) else leaf, tree, is_leaf=is_small)


@pytest.fixture(scope="module", params=MODELS)
def weights(request):
    """Kind, shape, weights in few bits and the same as floats."""
    config, mesh = MODELS[request.param], mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    small = quantized.quantize(cases.random_weights(config), config, request.param, "float32", mesh)
    return request.param, config, small, jax.jit(dequantised)(small)


@pytest.mark.parametrize("length", [3, 24])  # a loop over rows of experts, and blocks
def test_logits_are_those_of_the_dequantised_weights(weights, length):
    _, config, small, wide = weights
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, cases.V, (1, length)))

    @jax.jit
    def logits(params):
        hidden = decoder.forward(params, config, tokens, jnp.arange(length)[None], jnp.ones_like(tokens))
        return decoder.logits(params, config, hidden)

    expected = np.asarray(logits(wide))
    np.testing.assert_allclose(logits(small), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_samples_are_those_of_the_dequantised_weights(weights):
    kind, config, _, wide = weights
    rng = np.random.default_rng(2)
    delimiters = cases.random_delimiters(rng)
    requests = [
        EncodedRequest(
            tuple(rng.integers(0, 30, 5 + i).tolist()),
            SamplingParams(seed=i, max_thinking_tokens=9, max_answer_tokens=4),
            (),
        )
        for i in range(4)
    ]
    found, expected = (
        dict(Engine(wide, config=config, slots=4, cache_length=96, weight_dtype=one).sample(requests, delimiters))
        for one in (kind, "")
    )
    for number, sample in expected.items():
        assert list(found[number].ids) == list(sample.ids)
        assert abs(found[number].logprob - sample.logprob) < 1e-3


def test_a_checkpoint_is_held_in_few_bits_alone():
    path = pathlib.Path(s1jax.__file__).parent / "assets" / "countdown_base_quarter"
    engine = Engine(path, weight_dtype="fp8", slots=1)
    kernels = [leaf for leaf in jax.tree.leaves(engine.model.params, is_leaf=is_small) if is_small(leaf)]
    assert len(kernels) == 7 and all(kernel.codes.dtype == jnp.float8_e4m3fn for kernel in kernels)
    stored = store.load_model(path, host=True).params["layers"]["mlp"]["up"]["kernel"]
    found = np.asarray(engine.model.params["layers"]["mlp"]["up"]["kernel"].dequantize("float32"))
    assert 0.01 < (found - stored).std() / stored.std() < 0.03
    with pytest.raises(UserError, match="mxfp4 is a type of the weights of experts, and the model has none"):
        Engine(path, weight_dtype="mxfp4")
    held = engine.model.params
    with pytest.raises(UserError, match="the weights have other names or shapes than those of their config"):
        engine.update_weights({"embed": {"embedding": np.ones((3, 3), np.float32)}})
    assert engine.model.params is held
