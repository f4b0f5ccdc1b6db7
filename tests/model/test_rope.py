"""Scaled rotary frequencies against transformers' own, live where it is installed and as recorded from version 5.24."""

import dataclasses
import math

import numpy as np
import pytest

from s1jax.checkpoint import huggingface_config
from s1jax.config.presets import PRESETS
from s1jax.config.rope import RopeScaling
from s1jax.model import rope

LLAMA = PRESETS["llama3p1_8b"]


def _with(preset, **scaling):
    return dataclasses.replace(PRESETS[preset], rope_scaling=RopeScaling(**scaling))


CASES = {
    "llama 3.1": LLAMA,
    "llama 3.2": PRESETS["llama3p2_1b"],
    "llama with other borders": _with(
        "llama3p1_8b", kind="llama3", factor=16, original_context_length=4096, low_freq_factor=2, high_freq_factor=32
    ),
    "qwen 2.5 to 131,072": _with("qwen2p5_7b", kind="yarn", factor=4, original_context_length=32768),
    "gpt-oss": _with("smollm2_1p7b", kind="yarn", factor=32, original_context_length=4096, truncate=False),
    "yarn in one dimension": _with(
        "qwen3_8b", kind="yarn", factor=2, original_context_length=100, beta_fast=1000, beta_slow=20
    ),
    "yarn, few rotations": _with(
        "qwen3_8b", kind="yarn", factor=2, original_context_length=5, truncate=False, attention_factor=1.5
    ),
    "linear": _with("smollm2_135m", kind="linear", factor=4),
}


def _ours(config):
    """Frequencies [H / 2] and attention factor."""
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    return plain * rope.multipliers(config.head_dim, config.rope_theta, scaling), rope.attention_factor(scaling)


@pytest.mark.parametrize("name", CASES)
def test_frequencies_equal_those_of_transformers(name):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers import modeling_rope_utils

    config = CASES[name]
    values = huggingface_config.config_to_json(config)
    theirs = transformers.AutoConfig.for_model(**values)
    kind = config.rope_scaling.kind
    expected, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](theirs, device="cpu")
    frequencies, ours = _ours(config)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-5)
    assert ours == pytest.approx(factor, rel=1e-12)


# Of the H / 2 frequencies those at 1/5, 1/3, 1/2, 2/3 and the last, and the attention factor.
RECORDED = {
    "llama 3.1": ([0.0853971, 0.0134904, 0.000524846, 2.27489e-05, 3.06893e-07], 1.0),
    "llama 3.2": ([0.0853971, 0.0165604, 0.000429557, 5.68723e-06, 9.41831e-08], 1.0),
    "llama with other borders": ([0.0853971, 0.0037075, 8.83883e-05, 1.13745e-05, 1.53446e-07], 1.0),
    "qwen 2.5 to 131,072": ([0.0749894, 0.0107461, 0.000602941, 2.88695e-05, 3.10234e-07], 1.138629),
    "gpt-oss": ([0.109935, 0.0205346, 0.000545812, 1.37665e-05, 3.4731e-07], 1.346574),
    "yarn in one dimension": ([0.0749894, 0.0107461, 0.001, 0.000115478, 1.24094e-06], 1.069315),
    "yarn, few rotations": ([0.0749894, 0.0107461, 0.001, 0.000115478, 1.24094e-06], 1.5),
    "linear": ([0.0288696, 0.00684605, 0.000790569, 0.000130825, 3.58253e-06], 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_equal_the_recorded_ones(name):
    frequencies, factor = _ours(CASES[name])
    count = len(frequencies)
    expected, of_cosines = RECORDED[name]
    places = [count // 5, count // 3, count // 2, 2 * count // 3, count - 1]
    np.testing.assert_allclose(frequencies[places], expected, rtol=1e-5)
    assert factor == pytest.approx(of_cosines, rel=1e-6)


def test_llama3_by_hand():
    """One wavelength below, one between and one above the borders of Llama 3.1 8B."""
    ours = rope.multipliers(128, 5e5, LLAMA.rope_scaling)
    wavelengths = 2 * math.pi * 5e5 ** (np.arange(64) / 64)
    assert (ours[wavelengths < 2048] == 1).all() and (ours[wavelengths > 8192] == 1 / 8).all()
    (between,) = np.nonzero((wavelengths >= 2048) & (wavelengths <= 8192))
    assert len(between) == 6
    for index in between:
        smooth = (8192 / wavelengths[index] - 1) / 3
        assert ours[index] == pytest.approx((1 - smooth) / 8 + smooth)
