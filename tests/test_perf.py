"""Figures of speed and cost against counts done by hand."""

import time
import types

import jax
import numpy as np
import pytest

from s1jax import perf
from s1jax.config.layers import GQA, Dense, Layer
from s1jax.config.model import Group, ModelConfig
from s1jax.config.presets import PRESETS


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA B200", None),
    ],
)
def test_peak_flops(kind, peak):
    assert perf.peak_flops(kind) == peak


@pytest.mark.parametrize("tied", [True, False])
def test_train_flops_count_every_matrix_product(tied):
    """Matrix products of the forward pass counted one by one for one sequence of 10, 2 per multiply-add, times 3."""
    d, f, n, k, h, v, t = 8, 12, 4, 2, 2, 50, 10
    model = ModelConfig.dense(
        vocab_size=v, d_model=d, mlp_dim=f, num_layers=3, num_heads=n, num_kv_heads=k, head_dim=h, tied_embeddings=tied
    )
    products = 3 * (2 * d * n * h + 2 * d * k * h + 3 * d * f) + d * v
    pairs = t * (t + 1) // 2
    attention = 3 * pairs * n * (h + h)
    norms = 3 * 2 * d + d  # their scales are weights that a token is multiplied with, elementwise
    assert perf.train_flops(model, t, pairs) == 3 * 2 * (t * (products + norms) + attention)


def test_layers_with_a_window_compute_fewer_pairs():
    """Segments of 10 and 3 tokens, every second layer with a window of 4."""
    full, windowed = (Layer(GQA(4, 2, 2, window=window), Dense(12)) for window in (0, 4))
    model, plain = (ModelConfig(50, 8, (Group(2, (full, other)),)) for other in (windowed, full))
    pairs = perf.pairs_by_window([10, 3], model)
    assert pairs == {0: 55 + 6, 4: 1 + 2 + 3 + 4 * 7 + 6}
    fewer = perf.train_flops(plain, 13, pairs) - perf.train_flops(model, 13, pairs)
    assert fewer == 2 * 12 * 4 * 2 * (61 - 40)


def test_the_papers_run():
    """s1-32B: 6 x 32.5e9 x 23.6e6 tokens and attention are 4.9e18 operations; 16 H100 at 20 % take 26 minutes."""
    model = PRESETS["qwen2p5_32b"]
    flops = perf.train_flops(model, 23_600_000, 5000 * 4720 * 4721 // 2)
    assert 4.6e18 < flops < 5.0e18
    assert 0.17 < perf.mfu(flops, 26 * 60, "NVIDIA H100 80GB HBM3", 16) < 0.21
    assert perf.mfu(flops, 26 * 60, "cpu", 16) is None
    np.testing.assert_allclose(perf.dollars(26 * 60, 16, 2.5), 17.33, atol=0.01)


def test_peak_memory_is_that_of_the_fullest_device_where_the_backend_tells():
    full, half, silent = (
        types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
        for stats in ({"peak_bytes_in_use": 2**33, "bytes_in_use": 5}, {"peak_bytes_in_use": 2**32}, None)
    )
    assert perf.peak_memory([half, full, half]) == 2**33
    assert perf.peak_memory([silent, half]) == 2**32
    assert perf.peak_memory([silent]) is None


def test_the_clock_stands_still_while_programs_are_compiled():
    @jax.jit
    def inner(x):
        time.sleep(0.2)  # once, while it is traced
        return x + 1

    @jax.jit
    def outer(x):
        time.sleep(0.2)
        with jax.ensure_compile_time_eval():  # compiled within the other's time
            one = inner(0)
        return (x + one) * 2

    with perf.clock() as clock:
        begun = clock()
        assert outer(1.0) == 4 and inner(1) == 2
        slept = clock() - begun
        time.sleep(0.3)
        passed = clock() - begun
    assert 0 <= slept < 0.2 and passed - slept >= 0.3
