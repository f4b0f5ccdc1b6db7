"""Plans of sampling: bytes against the sizes of the arrays, and what compilers of machines that aren't here need."""

import importlib.util
import math

import jax
import pytest

from s1jax.config import presets
from s1jax.config.experiment import MeshConfig
from s1jax.config.layers import GQA, Experts, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.errors import UserError
from s1jax.model import decoder
from s1jax.plan import sampling, targets

_EXPERTS = Experts(8, 2, 32, scores="topk_softmax", router_bias=True, expert_bias=True, activation="clamped")
TINY = ModelConfig(40, 64, (Group(2, (Layer(GQA(4, 2, 8, sinks=True), _EXPERTS),)),), context_length=96)


@pytest.mark.parametrize(("weight_dtype", "bits"), [("mxfp4", 4.25), ("", 16)])
def test_memory_is_that_of_the_arrays(weight_dtype, bits):
    target = targets.parse("cpu:1")
    found = sampling.plan(TINY, target, MeshConfig(), slots=4, cache_length=64, weight_dtype=weight_dtype)
    experts = 2 * 8 * 3 * 64 * 32
    rest = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(decoder.abstract_params(TINY))) - experts
    memory = found.memory
    assert memory["weights"] == experts * bits / 8 + 2 * rest
    assert memory["KV cache"] == 4 * 64 * 2 * 2 * 2 * 8 * 2  # keys and values of two heads in two layers
    assert memory["peak"] >= memory["weights"] + memory["KV cache"] and memory["limit"] == 16e9
    assert found.fits and found.collectives == {}
    with pytest.raises(UserError, match="a cache of 128 tokens exceeds the model's context of 96"):
        sampling.plan(TINY, target, MeshConfig(), slots=4, cache_length=128)


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="no compiler for GPUs")
@pytest.mark.parametrize("slots", [4, 16])  # experts gathered, and in blocks
def test_an_h100_keeps_no_dequantised_experts(slots):
    """gpt-oss-20b takes the published 13.8 GB, and less than half a layer's experts in bfloat16 beside its cache."""
    config = presets.PRESETS["gpt_oss_20b"]
    found = sampling.plan(
        config, targets.parse("h100:1"), MeshConfig(), slots=slots, cache_length=4096, weight_dtype="mxfp4"
    )
    assert found.memory["weights"] == pytest.approx(13.76e9, rel=1e-3)
    assert found.memory["other"] < 32 * 3 * 2880 * 2880 * 2 / 2
