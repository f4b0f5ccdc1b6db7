"""How fast this device is: memory, matrix products, train steps and decode steps.

The memory's bandwidth is measured by a copy. The roofline of decoding is that bandwidth over the bytes that a step must
read: all weights, and the keys and values of all sequences. Model FLOPs utilisation (MFU) counts the operations of
`s1jax.perf.train_flops` against the maker's peak.
"""

from __future__ import annotations

import functools
import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax import perf
from s1jax.check.report import Check, Figure, Outcome, median_seconds, step_seconds
from s1jax.check.sizes import Sizes
from s1jax.config.experiment import MeshConfig, OptimizerConfig, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.model import cache as cache_lib
from s1jax.model import decoder
from s1jax.model.attention import dispatch
from s1jax.parallel import mesh as mesh_lib
from s1jax.text.delimiters import Delimiters
from s1jax.training import optimizer as optimizer_lib
from s1jax.training import step as step_lib

_TIMES = 5  # runs of a measurement; the median counts
_STEPS = 3  # train steps, likewise
_PRODUCTS = 8  # matrix products of one measurement, one after the other
_SEGMENTS = 4  # sequences that are packed into a row


class Speed:
    """The checks of speed; the bandwidth that one of them measures is the roofline of those after it."""

    def __init__(self, sizes: Sizes):
        """Measures nothing yet.

        Args:
          sizes: shapes.
        """
        self._sizes = sizes
        self._device = jax.devices()[0]
        self._on_cpu = self._device.platform == "cpu"
        self._bandwidth = 0.0  # bytes/s; 0: not measured

    def checks(self) -> list[Check]:
        """Memory and products, then train steps from the shortest on, then decoding."""
        sizes, found = self._sizes, []
        found.append(Check("speed", "memory bandwidth", self._memory))
        found.append(Check("speed", "matrix products", self._products))
        for length, rows in sizes.train:
            for name, model in sizes.models.items():
                label = f"{name}, {rows} x {length:,} packed"
                found.append(Check("train", label, functools.partial(self._train, model, length, rows)))
        name, model = next(iter(sizes.models.items()))
        for batch in sizes.batches:
            found.append(Check("decode", f"{name}, batch {batch}", functools.partial(self._decode, model, batch)))
        return found

    def _memory(self) -> Outcome:
        count = self._sizes.copied_bytes // 4
        array = jnp.ones(count, jnp.float32)
        copy = jax.jit(lambda x: x + 1)
        seconds = median_seconds(lambda: copy(array).block_until_ready(), _TIMES)
        self._bandwidth = 2 * 4 * count / seconds
        return Outcome({"bandwidth": Figure(self._bandwidth / 1e9, "GB/s")}, note="a copy, read and written")

    def _products(self) -> Outcome:
        size = self._sizes.product
        dtype = "float32" if self._on_cpu else "bfloat16"
        # Small numbers: products of products stay finite.
        a, b = (jax.random.normal(key, (size, size), dtype) * size**-0.5 for key in jax.random.split(jax.random.key(0)))

        @jax.jit
        def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, _PRODUCTS, lambda _, x: x @ b, a)

        seconds = median_seconds(lambda: multiply(a, b).block_until_ready(), _TIMES)
        flops = 2 * size**3 * _PRODUCTS / seconds
        figures = {"peak": Figure(flops / 1e12, "TFLOP/s")}
        known = None if self._on_cpu else perf.peak_flops(self._device.device_kind)
        if known is not None:
            figures["of data sheet"] = Figure(100 * flops / known, "%")
        return Outcome(figures, note=f"{dtype}, {size:,} x {size:,}")

    def _train(self, model: ModelConfig, length: int, rows: int) -> Outcome:
        platform, dtype = self._device.platform, "float32" if self._on_cpu else "bfloat16"
        asked: Any = dispatch.choose("auto", platform, dtype, True, 1, model.head_dim)[0]
        compute: Any = dtype
        train = TrainConfig(batch_size=rows, accumulation=rows, compute_dtype=compute, remat="full", attention=asked)
        mesh = mesh_lib.make_mesh(MeshConfig(), devices=[self._device])
        try:
            batch = _batch(model, length, rows)
            seconds, loss = _step_seconds(model, train, mesh, batch)
        finally:
            gc.collect()  # the weights of the next model need the memory
        tokens = rows * length
        pairs = rows * _SEGMENTS * (length // _SEGMENTS) * (length // _SEGMENTS + 1) / 2
        flops = perf.train_flops(model, tokens, pairs)
        figures = {"speed": Figure(tokens / seconds, "tokens/s"), "step": Figure(seconds, "s")}
        mfu = perf.mfu(flops, seconds, self._device.device_kind, 1)
        if mfu is not None:
            figures["MFU"] = Figure(100 * mfu, "%")
        peak = perf.peak_memory([self._device])
        if peak is not None:
            figures["peak memory so far"] = Figure(peak / 1e9, "GB")
        return Outcome(figures, bool(np.isfinite(loss)), f"attention {asked}, loss {loss:.3f}")

    def _decode(self, model: ModelConfig, batch: int) -> Outcome:
        sizes = self._sizes
        dtype = "float32" if self._on_cpu else "bfloat16"
        params = jax.jit(functools.partial(decoder.init_params, model, dtype=dtype))(jax.random.key(0))
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        if not model.tied_embeddings:
            weights -= params["embed"]["embedding"].nbytes  # a step reads only a few rows of it
        engine = Engine(params, config=model, slots=batch, dtype=dtype)
        del params
        try:
            step = _decode_seconds(engine, model, batch, sizes)
        finally:
            del engine
            gc.collect()
        context = sizes.prompt + sizes.new_tokens / 2
        read = weights + batch * context * cache_lib.bytes_per_token(model, dtype)
        figures = {"speed": Figure(batch / step, "tokens/s"), "step": Figure(1e3 * step, "ms")}
        if self._bandwidth:
            figures["of roofline"] = Figure(100 * read / self._bandwidth / step, "%")
        note = f"{sizes.prompt} + {sizes.new_tokens} tokens; a step reads {read / 1e9:.3g} GB"
        return Outcome(figures, note=note)


def _batch(model: ModelConfig, length: int, rows: int) -> dict[str, jax.Array]:
    """Packed rows of random tokens, all supervised."""
    rng = np.random.default_rng(0)
    each = length // _SEGMENTS
    places = np.arange(length)
    segment_ids = np.minimum(places // each, _SEGMENTS - 1) + 1
    shape = (rows, length)
    arrays = {
        "tokens": rng.integers(0, model.vocab_size, shape, dtype=np.int32),
        "targets": rng.integers(0, model.vocab_size, shape, dtype=np.int32),
        "positions": np.broadcast_to((places - (segment_ids - 1) * each).astype(np.int32), shape),
        "segment_ids": np.broadcast_to(segment_ids.astype(np.int32), shape),
        "weights": np.ones(shape, np.float32),
    }
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _step_seconds(
    model: ModelConfig, train: TrainConfig, mesh: jax.sharding.Mesh, batch: dict[str, jax.Array]
) -> tuple[float, float]:
    """Median seconds of a train step from random weights, and the last loss."""
    optimizer = OptimizerConfig()
    tx = optimizer_lib.make(optimizer, model, _STEPS + 1)
    abstract = step_lib.abstract_state(model, tx, mesh, train.param_dtype)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    init = jax.jit(functools.partial(decoder.init_params, model, dtype=train.param_dtype), out_shardings=shardings)
    state = step_lib.init_state(init(jax.random.key(0)), tx, abstract)
    step = step_lib.make_step(model, train, optimizer, _STEPS + 1, tx, mesh, abstract)
    loss = float("nan")

    def run() -> None:
        nonlocal state, loss
        state, metrics = step(state, batch)
        loss = float(metrics["loss"])

    return median_seconds(run, _STEPS), loss


def _decode_seconds(engine: Engine, model: ModelConfig, batch: int, sizes: Sizes) -> float:
    """Seconds of a decode step; nothing but the limit ends a sequence."""
    delimiters = Delimiters((), (0,), (), (), (), (), (), num_ids=model.vocab_size)
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, model.vocab_size, (batch, sizes.prompt)).tolist()

    def run(new_tokens: int) -> None:
        params = SamplingParams(max_thinking_tokens=0, max_answer_tokens=new_tokens - 1)
        samples = engine.sample([EncodedRequest(tuple(ids), params) for ids in prompts], delimiters)
        assert all(len(sample.ids) == new_tokens for _, sample in samples)

    return step_seconds(run, sizes.new_tokens, _TIMES)
