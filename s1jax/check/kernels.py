"""Kernels on this device against the reference `xla`, forward and backward.

The reference computes in float32 with exact products on the same device. An error is the largest difference, divided
by the largest number of the reference. A kernel that this device cannot run is not run; on a CPU the kernels that are
written in Pallas run in its interpreter.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.check.report import Check, Figure, NotHereError, Outcome
from s1jax.check.sizes import Sizes
from s1jax.config.model import ModelConfig
from s1jax.model import cache as cache_lib
from s1jax.model import linear, quant
from s1jax.model.attention import cached, dispatch, flash, fused, paged, xla
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.blocks import Part
from s1jax.model.quant import QTensor
from s1jax.model.quant_groups import GroupQTensor, quantize_groups
from s1jax.parallel.sharding import places

# Largest allowed errors: bfloat16 rounding of weights and outputs; float32 accumulation.
_LIMITS = {"bfloat16": 0.02, "float32": 1e-4}
_INT8_LIMIT = 0.05  # for int8 pages and weights, whose own rounding is 1 / 254 of the largest value of a vector
Kernel = Callable[..., jax.Array]  # (q, k, v, segment_ids) -> [B, T, N, H]


def checks(sizes: Sizes, platform: str) -> list[Check]:
    """The checks of all kernels.

    Args:
      sizes: shapes.
      platform: `cpu`, `gpu` or `tpu`, of the default device.
    """
    interpret = platform == "cpu"
    flash_kernel = functools.partial(flash.attend, interpret=interpret)
    splash = functools.partial(fused.splash, interpret=interpret)
    nvidia = "" if platform in ("gpu", "cuda", "cpu") else "it runs on NVIDIA GPUs"
    tpu = "" if platform in ("tpu", "cpu") else "it runs on TPUs"
    no_cudnn = "" if platform in ("gpu", "cuda") else "it runs on NVIDIA GPUs, and has no interpreter"
    chunked = functools.partial(dispatch.attend, implementation="chunked")
    rows: list[tuple[str, Kernel, str, str, str]] = [
        ("flash, packed", flash_kernel, "packed", "", nvidia),
        ("flash, padded", flash_kernel, "padded", "", nvidia),
        ("flash, split", _split(flash_kernel), "packed", "", nvidia),
        ("flash, window, softcap, sinks", flash_kernel, "packed", "all", nvidia),
        ("cudnn, padded", fused.cudnn, "padded", "", no_cudnn),
        ("cudnn, window", fused.cudnn, "padded", "window", no_cudnn),
        ("splash, packed", splash, "packed", "", tpu),
        ("splash, padded", splash, "padded", "", tpu),
        ("splash, split", _split(splash), "packed", "", tpu),
        ("splash, window, softcap, sinks", splash, "packed", "all", tpu),
    ]
    reference = functools.cache(functools.partial(_reference, sizes))
    found = [
        Check("kernels", name, functools.partial(_compare, kernel, sizes, kind, reason, reference, asked))
        for name, kernel, kind, asked, reason in rows
    ]
    for name, dtype, in_place, reason in (
        ("pages", sizes.dtype, False, ""),
        ("pages, int8", "int8", False, ""),
        ("paged", sizes.dtype, True, nvidia),
        ("paged, int8", "int8", True, nvidia),
    ):
        found.append(
            Check("kernels", name, functools.partial(_compare_pages, sizes, dtype, in_place, interpret, reason))
        )
    found += [
        Check("kernels", f"weights, {kind}", functools.partial(_compare_weights, sizes, kind))
        for kind in ("int8", "int4")
    ]
    # Last, because the tests of the project run them on every machine.
    portable: list[tuple[str, Kernel, str]] = [
        ("chunked, packed", chunked, ""),
        ("chunked, split", _split(chunked), ""),
        ("chunked, window, softcap, sinks", chunked, "all"),
    ]
    for name, kernel, asked in portable:
        found.append(Check("kernels", name, functools.partial(_compare, kernel, sizes, "packed", "", reference, asked)))
    return found


def _options(sizes: Sizes, asked: str) -> dict[str, Any]:
    """Of a kernel: `all` has a window of a quarter of the row, a softcap and sinks, `window` that alone."""
    if not asked:
        return {}
    rule = AttentionRule(sizes.head_dim**-0.5, window=sizes.length // 4, softcap=2.0 if asked == "all" else 0.0)
    sinks = {"sinks": jnp.linspace(-1, 3, sizes.heads)} if asked == "all" else {}
    return {"rule": rule, **sinks}


def error_of(ours: jax.Array, reference: jax.Array | np.ndarray) -> float:
    """Largest difference of two arrays over the largest number of the reference; infinite where ours is not finite."""
    a, b = np.asarray(ours, np.float32), np.asarray(reference, np.float32)
    if not np.isfinite(a).all():
        return float("inf")
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(b))), 1e-30))


def _segments(sizes: Sizes, kind: str) -> np.ndarray:
    """int32 [B, T]: several segments a row, or one segment and padding, which has an eighth of the row."""
    rng = np.random.default_rng(sizes.length)
    shape = (sizes.rows, sizes.length)
    ids = np.sort(rng.integers(1, 5, shape)) if kind == "packed" else np.ones(shape)
    ids[:, sizes.length - sizes.length // 8 :] = 0
    return ids.astype(np.int32)


def _inputs(sizes: Sizes) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    shapes = [(sizes.rows, sizes.length, n, sizes.head_dim) for n in heads]
    q, k, v = (jax.random.normal(key, shape, sizes.dtype) for key, shape in zip(keys, shapes, strict=True))
    return q, k, v


@functools.partial(jax.jit, static_argnums=0)  # packed and padded rows share the program of a kernel
def _gradients(kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> list[jax.Array]:
    """The outcome and the gradients of q, k and v; padding has no part in either."""
    real = (segment_ids > 0)[..., None, None]
    weights = jnp.where(real, jax.random.normal(jax.random.key(1), q.shape, jnp.float32), 0)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(real, kernel(q, k, v, segment_ids), 0)
        return jnp.sum(weights * out.astype(jnp.float32)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return [out, *gradients]


def _reference(sizes: Sizes, kind: str, asked: str = "") -> list[np.ndarray]:
    """`_gradients` of the reference, in float32."""
    q, k, v = (x.astype(jnp.float32) for x in _inputs(sizes))
    with jax.default_matmul_precision("highest"):
        kernel = functools.partial(xla.attend, **_options(sizes, asked)) if asked else xla.attend
        return [np.asarray(x) for x in _gradients(kernel, q, k, v, jnp.asarray(_segments(sizes, kind)))]


def _compare(
    kernel: Kernel,
    sizes: Sizes,
    kind: str,
    reason: str,
    reference: Callable[[str, str], list[np.ndarray]],
    asked: str = "",
) -> Outcome:
    if reason:
        raise NotHereError(reason)
    kernel = functools.partial(kernel, **_options(sizes, asked)) if asked else kernel
    ours = _gradients(kernel, *_inputs(sizes), jnp.asarray(_segments(sizes, kind)))
    forward, *backward = [error_of(a, b) for a, b in zip(ours, reference(kind, asked), strict=True)]
    limit = _LIMITS[sizes.dtype]
    figures = {"forward": Figure(100 * forward, "%"), "backward": Figure(100 * max(backward), "%")}
    return Outcome(figures, max(forward, *backward) <= limit, f"errors; the limit is {100 * limit:g} %")


def _split(kernel: Callable[..., jax.Array]) -> Kernel:
    """A kernel on the queries of two devices that share each row, one after the other."""

    def whole(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        table = places(q.shape[1], 2)
        parts = []
        for index, own in enumerate(table):
            part = Part(table, jnp.int32(index), segment_ids)
            parts.append(kernel(q[:, own], k, v, segment_ids[:, own], part=part))
        back = np.argsort(table.reshape(-1))
        return jnp.concatenate(parts, axis=1)[:, back]

    return whole


def _compare_pages(sizes: Sizes, dtype: str, in_place: bool, interpret: bool, reason: str) -> Outcome:
    """One decode step over pages against the reference on the same keys and values without pages."""
    if reason:
        raise NotHereError(reason)
    rows, capacity = sizes.rows, sizes.pages * sizes.page_size
    lengths = np.linspace(capacity // 3, capacity - 1, rows).astype(np.int32)  # before the new token
    shapes = [(rows, capacity, n, sizes.head_dim) for n in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    keys = jax.random.split(jax.random.key(2), 3)
    q, k, v = (jax.random.normal(key, shape, sizes.dtype) for key, shape in zip(keys, shapes, strict=True))
    model = ModelConfig.dense(
        vocab_size=8, d_model=8, mlp_dim=8, num_layers=1, num_heads=sizes.heads, num_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
    )  # fmt: skip
    table = np.random.default_rng(0).permutation(rows * sizes.pages).reshape(rows, sizes.pages)
    pages = jax.tree.map(lambda x: x[0], cache_lib.init_pages(model, rows * sizes.pages, sizes.page_size, dtype))
    new_tokens = functools.partial(cache_lib.NewTokens, jnp.asarray(table, jnp.int32))
    pages = jax.jit(cache_lib.append)(pages, None, k, v, new_tokens(jnp.zeros(rows, jnp.int32), jnp.asarray(lengths)))
    at = [x[np.arange(rows), lengths][:, None] for x in (q, k, v)]  # the new token [B, 1, ...]
    new = new_tokens(jnp.asarray(lengths), jnp.ones(rows, jnp.int32))

    def step(q: jax.Array, k: jax.Array, v: jax.Array, pages: cache_lib.Pages) -> jax.Array:
        if not in_place:
            return cached.attend_cached(q, k, v, pages, None, new)[0]
        pages = cache_lib.append(pages, None, k, v, new)
        grouped = (q * sizes.head_dim**-0.5).reshape(rows, sizes.kv_heads, -1, sizes.head_dim)
        return paged.attend(grouped, pages, None, new, interpret=interpret).reshape(q.shape)

    ours = jax.jit(step)(*at, pages)
    # The new token is the last one of its row that the reference sees.
    segment_ids = jnp.asarray(np.arange(capacity) <= lengths[:, None], jnp.int32)
    with jax.default_matmul_precision("highest"):
        whole = jax.jit(xla.attend)(*(x.astype(jnp.float32) for x in (q, k, v)), segment_ids)
    error = error_of(ours, whole[np.arange(rows), lengths][:, None])
    limit = _INT8_LIMIT if dtype == "int8" else _LIMITS[sizes.dtype]
    return Outcome({"forward": Figure(100 * error, "%")}, error <= limit, f"error; the limit is {100 * limit:g} %")


def _compare_weights(sizes: Sizes, kind: str) -> Outcome:
    """A product as engines of this platform do it against float32: of the matrix; for int4, of what the codes say."""
    inner = sizes.heads * sizes.head_dim
    x, kernel = (
        jax.random.normal(key, shape, jnp.float32)
        for key, shape in zip(jax.random.split(jax.random.key(3)), ((8, inner), (inner, 4 * inner)), strict=True)
    )

    @jax.jit
    def products(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        if kind == "int8":
            small: QTensor | GroupQTensor = quant.quantize(kernel, (-2,))
        else:
            small = quantize_groups(kernel, 1, "int4", 32)
            kernel = small.dequantize(jnp.float32)
        reference = jnp.matmul(x, kernel, precision="highest")
        x = x.astype(sizes.dtype)
        return linear.matmul(x, small.integer_kernel() if jax.default_backend() == "cpu" else small), reference

    error = error_of(*products(x, kernel))
    note = f"error; the limit is {100 * _INT8_LIMIT:g} %"
    return Outcome({"forward": Figure(100 * error, "%")}, error <= _INT8_LIMIT, note)
