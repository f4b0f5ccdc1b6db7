"""FlashAttention for NVIDIA GPUs, in Pallas: packed rows, padded rows, and queries that are a part of their row.

Scores stay on the chip (FlashAttention-2, Dao 2023). Blocks of keys that no query of a block can see are not computed:
above the diagonal, outside of the window, and where their segments differ, so that a packed row costs what its segments
cost. cuDNN's kernel
(`s1jax.model.attention.fused`) knows neither segments nor parts of a row.

Each kernel holds one large block of queries or keys and meets the small blocks of the others in turn: `flash_forward`
and `flash_backward_queries` hold queries, `flash_backward_keys` holds keys and meets the queries of all their heads.

Axis letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head dimension
of queries and keys, Hv that of values, C large block, D small block.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from s1jax.model.attention import rule as rule_lib
from s1jax.model.attention.chunked import MASKED
from s1jax.model.attention.rule import AttentionRule
from s1jax.model.blocks import Part

LOG2E = math.log2(math.e)
SMALLEST = 16  # rows or columns of Triton's products
_call = functools.partial(pl.pallas_call, compiler_params=triton.CompilerParams(num_warps=8, num_stages=2))


# Of a softmax over blocks: largest score [C], sum [C] and unscaled mean [C, H], float32.
Running = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tokens of the block that a kernel holds, C, and of those that it meets, D: powers of 2 from 16 on."""

    held: int
    met: int

    @classmethod
    def of(cls, head_dim: int) -> Blocks:
        """For heads of so many dimensions, a power of 2.

        The first sizes compile for an H100 to products of whole warp groups without a register spilled (H 64 and 128);
        with H 256 they would need 262 of its 232 kB of shared memory.
        """
        return cls(128, 64) if head_dim <= 128 else cls(64, 64)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    part: Part | None = None,
    *,
    rule: AttentionRule | None = None,
    sinks: jax.Array | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention within segments; arguments of `s1jax.model.attention.dispatch.attend`, for bfloat16 and float16.

    Under a remat policy that saves the name `attention`, output and log-sum-exp are kept.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, Hv], Hv at most H.
      segment_ids: int32 [B, T]; 0 is padding, which attends to nothing.
      part: which queries of a row these are; None: they are the row.
      rule: as in `dispatch.attend`.
      sinks: [N], as there.
      blocks: their sizes; None: those of `Blocks.of`.
      interpret: runs on any backend, slowly, for tests.

    Returns:
      [B, T, N, Hv] in the dtype of `q`, 0 for padding; softmax and sums in float32.
    """
    rule, length = rule_lib.or_plain(rule, q.shape[3]), q.shape[1]
    places = jnp.arange(length, dtype=jnp.int32) if part is None else part.own
    wide = max(SMALLEST, pl.next_power_of_2(q.shape[3]))
    blocks = blocks or Blocks.of(wide)
    coarse = max(blocks.held, blocks.met)
    tokens = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % coarse), (0, 0), (0, wide - x.shape[3])))  # noqa: E731
    # Padding gets two ids above all others: its queries have no key, and the ids of a packed row rise to its end.
    own = _marked(segment_ids, 2**30, coarse)
    seen = _marked(segment_ids if part is None else part.segment_ids, 2**30 + 1, coarse)
    places = jnp.pad(places, (0, -length % coarse), mode="edge")
    sinks = None if sinks is None else sinks.astype(jnp.float32)
    out = _attend(tokens(q), tokens(k), tokens(v), own, seen, places, sinks, rule, blocks, interpret)
    return out[:, :length, :, : v.shape[3]]


def _marked(ids: jax.Array, padding: int, multiple: int) -> jax.Array:
    """Segment ids, filled up to whole blocks, with another id for padding."""
    return jnp.pad(jnp.where(ids > 0, ids, padding), ((0, 0), (0, -ids.shape[1] % multiple)), constant_values=padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, own: jax.Array, seen: jax.Array, places: jax.Array,
    sinks: jax.Array | None, rule: AttentionRule, blocks: Blocks, interpret: bool,
) -> jax.Array:  # fmt: skip
    """`attend` on whole blocks."""
    return _forward(q, k, v, own, seen, places, sinks, rule, blocks, interpret)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, own: jax.Array, seen: jax.Array, places: jax.Array,
    sinks: jax.Array | None, rule: AttentionRule, blocks: Blocks, interpret: bool,
) -> tuple[jax.Array, tuple[Any, ...]]:  # fmt: skip
    specs, queries, statistics = _query_specs(q, k, blocks)
    of_sinks = [] if sinks is None else [pl.BlockSpec((None,), lambda i, n, b: (n,))]
    out, log_sum = _call(
        functools.partial(_forward_kernel, rule=rule, block=blocks.met),
        name="flash_forward",
        grid=(q.shape[1] // blocks.held, q.shape[2], q.shape[0]),
        in_specs=[*specs, *of_sinks],
        out_specs=[queries, statistics],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32),
        ],
        interpret=interpret,
    )(
        q, k, v, own, seen, places, *_bounds(_needed(own, seen, places, blocks.held, blocks.met, rule.window)),
        *([] if sinks is None else [sinks]),
    )  # fmt: skip
    out, log_sum = checkpoint_name(out, "attention"), checkpoint_name(log_sum, "attention")
    return out, (q, k, v, own, seen, places, sinks, out, log_sum)


def _backward(
    rule: AttentionRule, blocks: Blocks, interpret: bool, residuals: tuple[Any, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    *arrays, sinks, out, log_sum = residuals
    q, k, v, own, seen, places = arrays
    (batch, length, heads, head_dim), (_, keys, kv_heads, _) = q.shape, k.shape
    group = heads // kv_heads
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1).swapaxes(1, 2)  # [B, N, T]

    specs, queries, statistics = _query_specs(q, k, blocks)
    d_q = _call(
        functools.partial(_queries_kernel, rule=rule, block=blocks.met),
        name="flash_backward_queries",
        grid=(length // blocks.held, heads, batch),
        in_specs=[*specs, queries, statistics, statistics],
        out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=interpret,
    )(*arrays, *_bounds(_needed(own, seen, places, blocks.held, blocks.met, rule.window)), d_out, log_sum, delta)

    held = pl.BlockSpec((None, blocks.held, None, head_dim), lambda j, h, b: (b, j, h, 0))
    met = pl.BlockSpec((None, length, group, head_dim), lambda j, h, b: (b, 0, h, 0))
    statistics = pl.BlockSpec((None, group, length), lambda j, h, b: (b, h, 0))
    bound = pl.BlockSpec((None, None), lambda j, h, b: (b, j))
    needed = _needed(own, seen, places, blocks.met, blocks.held, rule.window).swapaxes(1, 2)
    d_k, d_v = _call(
        functools.partial(_keys_kernel, rule=rule, block=blocks.met, group=group),
        name="flash_backward_keys",
        grid=(keys // blocks.held, kv_heads, batch),
        in_specs=[
            met,
            held,
            held,
            pl.BlockSpec((None, length), lambda j, h, b: (b, 0)),
            pl.BlockSpec((None, blocks.held), lambda j, h, b: (b, j)),
            pl.BlockSpec((length,), lambda j, h, b: (0,)),
            bound,
            bound,
            met,
            statistics,
            statistics,
        ],
        out_specs=[held, held],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        interpret=interpret,
    )(*arrays, *_bounds(needed), d_out, log_sum, delta)
    d_sinks = None
    if sinks is not None:
        d_sinks = -jnp.sum(jnp.exp2(sinks[:, None] * LOG2E - log_sum) * delta, axis=(0, 2))
    return d_q, d_k, d_v, None, None, None, d_sinks


_attend.defvjp(_forward, _backward)


def _query_specs(q: jax.Array, k: jax.Array, blocks: Blocks) -> tuple[list[pl.BlockSpec], pl.BlockSpec, pl.BlockSpec]:
    """Specs of a kernel that holds queries, grid [T / C, N, B]: its first inputs, queries, and their statistics."""
    length, heads, head_dim = q.shape[1:]
    keys, group, last = k.shape[1], heads // k.shape[2], length // blocks.held - 1
    # The last queries, which have the most keys, begin: short blocks at the end leave no processor waiting.
    queries = pl.BlockSpec((None, blocks.held, None, head_dim), lambda i, n, b: (b, last - i, n, 0))
    whole = pl.BlockSpec((None, keys, None, head_dim), lambda i, n, b: (b, 0, n // group, 0))
    bound = pl.BlockSpec((None, None), lambda i, n, b: (b, last - i))
    inputs = [
        queries,
        whole,
        whole,
        pl.BlockSpec((None, blocks.held), lambda i, n, b: (b, last - i)),
        pl.BlockSpec((None, keys), lambda i, n, b: (b, 0)),
        pl.BlockSpec((blocks.held,), lambda i, n, b: (last - i,)),
        bound,
        bound,
    ]
    return inputs, queries, pl.BlockSpec((None, None, blocks.held), lambda i, n, b: (b, n, last - i))


def _forward_kernel(q_ref, k_ref, v_ref, own_ref, seen_ref, places_ref, first_ref, last_ref, *refs, rule, block):
    """Outcome and log-sum-exp, base 2, of queries [C, H] over keys [S, H]."""
    *sink_ref, out_ref, log_sum_ref = refs
    q, own, places = q_ref[...], own_ref[...], places_ref[...]
    start = start_of(q)
    if sink_ref:  # a key that has been met, whose value is 0
        start = jnp.full_like(start[0], sink_ref[0][...] * LOG2E), jnp.ones_like(start[1]), start[2]

    def add(j: jax.Array, running: Running) -> Running:
        here = pl.ds(j * block, block)
        visible = _visible(places[:, None], own[:, None], _places(j, block)[None], seen_ref[here][None], rule)
        scores, _ = _scores(triton.dot(q, k_ref[here, :].T), rule)
        scores = jnp.where(visible, scores, MASKED)
        return fold(running, scores, lambda weights: triton.dot(weights.astype(q.dtype), v_ref[here, :]))

    top, total, mean = jax.lax.fori_loop(first_ref[...], last_ref[...], add, start)
    nothing = top <= MASKED  # a query that has met no key, or masked ones only
    total = jnp.where(nothing, 1.0, total)
    out_ref[...] = jnp.where(nothing[:, None], 0.0, mean / total[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = jnp.where(nothing, -MASKED, top + jnp.log2(total))  # weights made from it are 0


def _queries_kernel(
    q_ref, k_ref, v_ref, own_ref, seen_ref, places_ref, first_ref, last_ref, d_out_ref, log_sum_ref, delta_ref,
    d_q_ref, *, rule, block,
):  # fmt: skip
    """Gradient of queries [C, H] from keys and values [S, H]."""
    q, own, places, d_out = q_ref[...], own_ref[...], places_ref[...], d_out_ref[...]
    log_sum, delta = log_sum_ref[...][:, None], delta_ref[...][:, None]

    def add(j: jax.Array, d_q: jax.Array) -> jax.Array:
        here = pl.ds(j * block, block)
        k = k_ref[here, :]
        visible = _visible(places[:, None], own[:, None], _places(j, block)[None], seen_ref[here][None], rule)
        scores, slope = _scores(triton.dot(q, k.T), rule)
        weights = jnp.exp2(jnp.where(visible, scores, MASKED) - log_sum)
        d_scores = weights * (triton.dot(d_out, v_ref[here, :].T) - delta)
        d_scores = d_scores if slope is None else d_scores * slope
        return d_q + triton.dot(d_scores.astype(q.dtype), k)

    d_q = jax.lax.fori_loop(first_ref[...], last_ref[...], add, jnp.zeros(q.shape, jnp.float32))
    d_q_ref[...] = (d_q * rule.scale).astype(d_q_ref.dtype)


def _keys_kernel(
    q_ref, k_ref, v_ref, own_ref, seen_ref, places_ref, first_ref, last_ref, d_out_ref, log_sum_ref, delta_ref,
    d_k_ref, d_v_ref, *, rule, block, group,
):  # fmt: skip
    """Gradients of keys and values [C, H] from the queries [T, G, H] of their heads; scores are [C, D]."""
    k, v, seen = k_ref[...], v_ref[...], seen_ref[...]
    places = _places(pl.program_id(0), k.shape[0])

    def add(i: jax.Array, carry: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, ...]:
        d_k, d_v = carry
        here = pl.ds(i * block, block)
        q, d_out = q_ref[here, g, :], d_out_ref[here, g, :]
        visible = _visible(places_ref[here][None], own_ref[here][None], places[:, None], seen[:, None], rule)
        scores, slope = _scores(triton.dot(k, q.T), rule)
        weights = jnp.exp2(jnp.where(visible, scores, MASKED) - log_sum_ref[g, here][None])
        d_v += triton.dot(weights.astype(q.dtype), d_out)
        d_scores = weights * (triton.dot(v, d_out.T) - delta_ref[g, here][None])
        d_scores = d_scores if slope is None else d_scores * slope
        return d_k + triton.dot(d_scores.astype(q.dtype), q), d_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    first, last = first_ref[...], last_ref[...]
    of_head = lambda g, carry: jax.lax.fori_loop(first, last, functools.partial(add, g=g), carry)  # noqa: E731
    d_k, d_v = jax.lax.fori_loop(0, group, of_head, (zeros, zeros))
    d_k_ref[...] = (d_k * rule.scale).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v.astype(d_v_ref.dtype)


def start_of(q: jax.Array) -> Running:
    """Nothing met yet."""
    return jnp.full(q.shape[:1], MASKED), jnp.zeros(q.shape[:1]), jnp.zeros(q.shape, jnp.float32)


def fold(running: Running, scores: jax.Array, weigh: Callable[[jax.Array], jax.Array]) -> Running:
    """Meets one more block: base 2 scores [C, D], and the product [C, H] of weights [C, D] with the values."""
    top, total, mean = running
    higher = jnp.maximum(top, scores.max(1))
    weights, shrink = jnp.exp2(scores - higher[:, None]), jnp.exp2(top - higher)
    return higher, total * shrink + weights.sum(1), mean * shrink[:, None] + weigh(weights)


def _places(index: jax.Array, block: int) -> jax.Array:
    """Of the keys of a block in their row, int32 [block]."""
    return index * block + jnp.arange(block)


def _scores(products: jax.Array, rule: AttentionRule) -> tuple[jax.Array, jax.Array | None]:
    """Base 2 scores, and by how much less than scaled products they change; None: by as much, without a softcap."""
    if not rule.softcap:
        return products * (rule.scale * LOG2E), None
    bent = jnp.tanh(products * (rule.scale / rule.softcap))
    return bent * (rule.softcap * LOG2E), 1 - bent * bent


def _visible(
    places: jax.Array, own: jax.Array, key_places: jax.Array, seen: jax.Array, rule: AttentionRule
) -> jax.Array:
    """Whether queries at `places`, of segments `own`, see keys at `key_places`, of segments `seen`."""
    visible = (places >= key_places) & (own == seen)
    return visible & (places - rule.window < key_places) if rule.window else visible


def _needed(own: jax.Array, seen: jax.Array, places: jax.Array, c: int, d: int, window: int) -> jax.Array:
    """bool [B, T / C, S / D]: pairs of blocks where some query sees some key, and in unsorted rows a few more."""
    ids = own.reshape(own.shape[0], -1, 1, c)
    keys = seen.reshape(seen.shape[0], 1, -1, d)
    meet = (ids.min(-1) <= keys.max(-1)) & (ids.max(-1) >= keys.min(-1))
    places, first = places.reshape(-1, c), jnp.arange(0, seen.shape[1], d)
    meet &= places.max(-1)[:, None] >= first
    return meet & (places.min(-1)[:, None] - window < first + d - 1) if window else meet


def _bounds(needed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """bool [B, X, Y] -> int32 [B, X] twice: the first y that is needed, and the one after the last; 0, 0 if none is."""
    any_ = needed.any(-1)
    first = jnp.where(any_, jnp.argmax(needed, -1), 0)
    last = jnp.where(any_, needed.shape[-1] - jnp.argmax(needed[..., ::-1], -1), 0)
    return first.astype(jnp.int32), last.astype(jnp.int32)
