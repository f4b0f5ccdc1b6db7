"""Computes the performance figures of a run: FLOPs, MFU, device memory, dollars."""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from s1jax.config.layers import GQA, MLA
from s1jax.config.model import ModelConfig

# Dense bf16 peak of one device in FLOP/s, by a substring of `jax.Device.device_kind`; the first match counts.
# Sources: the makers' data sheets (NVIDIA H100 SXM/PCIe/NVL, H200, A100, L40S, L40, L4; Google Cloud's TPU pages). A
# v2 or v3 chip is two devices for jax, so their figures are half a chip's.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of a device, or None if it is not known (a CPU, a MIG slice of a GPU)."""
    if "MIG" in device_kind:
        return None
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in device_kind.lower()), None)


def pairs_by_window(lengths: Iterable[int], *models: ModelConfig) -> dict[int, float]:
    """Causal (query, key) pairs of sequences, for each window of the models and for none, 0; as of `train_flops`."""
    array = np.asarray(list(lengths), np.float64)
    windows = {0}.union(*(model.windows for model in models))
    return {window: float(_pairs(array, np.minimum(array, window or np.inf)).sum()) for window in windows}


def _pairs(lengths: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Of sequences no shorter than the window: the first queries see 1, 2, ... keys, the others all of the window."""
    return windows * (windows + 1) / 2 + (lengths - windows) * windows


def train_flops(
    config: ModelConfig,
    tokens: int,
    pairs: float | Mapping[int, float],
    teacher: ModelConfig | None = None,
    adapters: int = 0,
) -> float:
    """FLOPs of one training step of the model, without recomputation; of a teacher the forward pass, a third of it.

    6 * weights * tokens + 6 * N * (H + Hv) * pairs for every layer; Hv is H but for `MLA`. Weights are those that
    multiply tokens: all but the input embedding (the output projection counts, tied or not), with 2 FLOPs per weight
    forward and 4 backward. A pair costs 2 H for its score and 2 Hv for its value in each of N heads, and twice that
    backward. Only causal pairs count: the key is not later than the query.

    With adapters the other weights have no gradient and cost 4 FLOPs instead of 6, and those of adapters 6.

    Args:
      config: shape of the model.
      tokens: tokens without padding.
      pairs: causal (query, key) pairs within segments, without padding; n (n + 1) / 2 for length n. By window, if some
        layers have one, see `pairs_by_window`.
      teacher: shape of a model that reads the same tokens and is not trained.
      adapters: their weights that a token is multiplied with; 0: there are none, and all weights are trained.
    """
    if teacher is not None:
        return train_flops(config, tokens, pairs, None, adapters) + train_flops(teacher, tokens, pairs) / 3
    weights = config.active_params - (0 if config.tied_embeddings else config.vocab_size * config.d_model)
    attention = 0.0
    for layer in config.layers():
        seen = pairs[getattr(layer.attention, "window", 0)] if isinstance(pairs, Mapping) else pairs
        attention += 6 * _pair_width(layer.attention) * seen
    if adapters:
        return (4.0 * weights + 6.0 * adapters) * tokens + attention
    return 6.0 * weights * tokens + attention


def _pair_width(attention: GQA | MLA) -> int:
    """N (H + Hv) of a layer: numbers that a (query, key) pair multiplies in all heads."""
    value_dim = attention.value_dim if isinstance(attention, MLA) else attention.head_dim
    return attention.num_heads * (attention.head_dim + value_dim)


def mfu(flops: float, seconds: float, device_kind: str, devices: int) -> float | None:
    """Share of the devices' peak that `flops` in `seconds` reach; None if the peak is not known."""
    peak = peak_flops(device_kind)
    return None if peak is None or seconds <= 0 else flops / seconds / (peak * devices)


def dollars(seconds: float, devices: int, per_device_hour: float) -> float:
    """Price in US dollars of `devices` devices for `seconds` seconds."""
    return seconds / 3600 * devices * per_device_hour


@contextlib.contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Yields a clock in seconds that stops while programs are traced, compiled or loaded."""
    spans: list[tuple[float, float]] = []

    def note(event: str, start_time: float, end_time: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            while spans and spans[-1][0] >= start_time:  # compiled while another one was traced
                spans.pop()
            spans.append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(note)
    try:
        yield lambda: time.monotonic() - sum(end - start for start, end in spans)
    finally:
        jax.monitoring.unregister_event_time_span_listener(note)


def peak_memory(devices: Iterable[Any]) -> int | None:
    """Most bytes that were ever in use on one of some `jax.Device`s; None if the backend does not report it (CPU)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return max((int(peak) for peak in peaks if peak is not None), default=None)


def fits(tree: Any, free: float | None = None) -> bool:
    """Whether every device that holds arrays of `tree` has room for as much once more, and a tenth of it to spare.

    `free` are the bytes that are free on each; None: the devices are asked, and abstract arrays have none.
    """
    free = free_memory(jax.tree.leaves(tree)[0].devices()) if free is None else free
    return free is None or 1.1 * held_bytes(tree) < free


def held_bytes(tree: Any) -> int:
    """Bytes that each device holds of the arrays of `tree`, which may be abstract but have shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def free_memory(devices: Iterable[Any]) -> int | None:
    """Bytes that are free on the fullest of some `jax.Device`s, or in this machine's memory if they are CPUs.

    None if neither is known.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in one and "bytes_in_use" in one for one in stats):
        return min(int(one["bytes_limit"] - one["bytes_in_use"]) for one in stats)
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
