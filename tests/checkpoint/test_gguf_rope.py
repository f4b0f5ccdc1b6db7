"""Rotary scaling of GGUF files: the metadata, and the divisors of Llama 3."""

import dataclasses
import math

import numpy as np
import pytest

from s1jax.checkpoint.gguf import file, metadata, read
from s1jax.config.model import ModelConfig
from s1jax.config.presets import PRESETS
from s1jax.config.rope import RopeScaling
from tests.checkpoint.test_gguf import _write
from tests.model.parity_cases import CASES, weights

SCALED = [
    # As llama.cpp's converter writes them.
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0), 32768),
    ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4.0), 32768),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None, 32768),
    ({"rope.scaling.factor": 1.0}, None, 32768),
    (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16384},
        RopeScaling("yarn", 4.0, 16384),
        65536,
    ),
    (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 40.0},
        RopeScaling("yarn", 2.0, 32768, beta_fast=40.0),
        65536,
    ),
]


@pytest.mark.parametrize(("values", "scaling", "length"), SCALED)
def test_rotary_scaling_in_the_metadata(tmp_path, values, scaling, length):
    config = CASES["llama"]
    _write(tmp_path / "m.gguf", config, weights(config), "llama", metadata=values)
    found = metadata.read_config(file.open_file(tmp_path / "m.gguf"), "m.gguf")
    assert found == dataclasses.replace(config, rope_scaling=scaling, context_length=length)


@pytest.mark.parametrize("preset", ["llama3p1_8b", "llama3p2_1b", ""])
def test_divisors_of_the_frequencies_are_those_of_llama3(tmp_path, preset):
    """`rope_freqs.weight` computed as llama.cpp's converter does (conversion/llama.py)."""
    published = PRESETS[preset] if preset else dataclasses.replace(
        PRESETS["llama3p1_8b"], rope_scaling=RopeScaling("llama3", 16.0, 4096))  # fmt: skip
    scaling, h = published.rope_scaling, published.head_dim
    changes = {"head_dim": h, "rope_theta": published.rope_theta, "rope_scaling": scaling, "num_layers": 1}
    config = ModelConfig.dense(**{**CASES["llama"].flat(), **changes})
    divisors = []
    for frequency in 1.0 / config.rope_theta ** (np.arange(0, h, 2, dtype=np.float32) / h):
        wavelength = 2 * math.pi / frequency
        if wavelength < scaling.original_context_length / 4:
            divisors.append(1)
        elif wavelength > scaling.original_context_length:
            divisors.append(scaling.factor)
        else:
            smooth = (scaling.original_context_length / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    tensor = (np.array(divisors, np.float32), None)
    params = weights(config)
    _write(tmp_path / "m.gguf", config, params, "llama", tensors={"rope_freqs.weight": tensor})
    reader = file.open_file(tmp_path / "m.gguf")
    assert metadata.read_config(reader, "m.gguf") == config
    found = read.read_params(reader, config, "m.gguf")
    np.testing.assert_array_equal(found["embed"]["embedding"], params["embed"]["embedding"])


def test_divisors_of_one_change_nothing(tmp_path):
    config = CASES["llama"]
    ones = {"rope_freqs.weight": (np.ones(6, np.float32), None)}
    _write(tmp_path / "m.gguf", config, weights(config), "llama", tensors=ones)
    assert metadata.read_config(file.open_file(tmp_path / "m.gguf"), "m.gguf") == config
