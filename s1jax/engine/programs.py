"""Jitted programs of sampling: prefill a prompt, admit it to a batch slot, decode all slots.

One step of decoding runs the model on the last token of each slot, samples, lets `s1jax.engine.budget` replace or queue
tokens, and stores them. A wait, a cut or an answer is an array update on the device. The host is asked only when a slot
is free that a waiting request can take. `s1jax.engine.scheduler` calls these programs.

A program is compiled once for each model, number of slots and shape of the KV cache (`s1jax.engine.capacity`); prefill
and admission also for each length of the prompt, rounded up to a power of two. Budgets, waits of up to 64 tokens,
temperatures and seeds cause no recompilation.

Axis letters: B batch slots, T prompt length, S tokens that a sequence may have, M pages of a sequence, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from s1jax.config.model import ModelConfig
from s1jax.engine import budget as budget_lib
from s1jax.engine import logits as logits_lib
from s1jax.model import cache as cache_lib
from s1jax.model import decoder
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding

# Tokens of a prompt that run at one time: bounds the memory of a long prefill, with scores [N, this, pages at once].
_CHUNK = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """What decoding carries from step to step.

    Attributes:
      pages: of the KV cache, stacked or one array a layer; they hold all tokens of each slot but the last one.
      lengths: int32 [B], tokens in the cache.
      state: of budget forcing.
      ids: int32 [B, S], emitted token ids, without those of think_start, which the host knows.
      forced: bool [B, S].
      logprob: float32 [B, S], of each sampled id; 0 for forced ones.
      seen: uint32 [B, W], token ids of the prompt and of the sequence, see `s1jax.engine.logits.words`.
    """

    pages: Any
    lengths: jax.Array
    state: budget_lib.State
    ids: jax.Array
    forced: jax.Array
    logprob: jax.Array
    seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What the requests in the batch slots ask for.

    Attributes:
      sampling: of each slot.
      budgets: of each slot.
      rules: of each slot.
      table: int32 [B, M], pages of each slot.
    """

    sampling: logits_lib.Sampling
    budgets: budget_lib.Budgets
    rules: budget_lib.Rules
    table: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "slots", "num_ids", "pages", "size", "dtype", "unstack", "mesh"))
def start(
    config: ModelConfig,
    slots: int,
    num_ids: int,
    pages: int,
    size: int,
    dtype: DTypeLike,
    *,
    unstack: bool,
    mesh: Mesh | None,
) -> Run:
    """Returns `slots` finished slots and empty pages.

    Args:
      config: shape of the model.
      slots: B.
      num_ids: S.
      pages: of the cache, for all slots.
      size: tokens of a page.
      dtype: of the cache; int8 is quantised.
      unstack: one array of pages a layer, as a loop with unstacked weights wants them.
      mesh: None: one device.
    """
    blank = cache_lib.init_pages(config, pages, size, dtype)
    if mesh is not None:
        blank = lax.with_sharding_constraint(blank, sharding.page_sharding(mesh, config.num_kv_heads))
    zeros = jnp.zeros(slots, jnp.int32)
    return Run(
        pages=cache_lib.unstack(blank) if unstack else blank,
        lengths=zeros,
        state=budget_lib.finished(slots),
        ids=jnp.zeros((slots, num_ids), jnp.int32),
        forced=jnp.zeros((slots, num_ids), bool),
        logprob=jnp.zeros((slots, num_ids), jnp.float32),
        seen=jnp.zeros((slots, -(-config.vocab_size // 32)), jnp.uint32),
    )


@functools.partial(jax.jit, static_argnames=("config", "size", "at_once", "dtype", "mesh"))
def prefill(
    params: Mapping[str, Any],
    tokens: jax.Array,
    length: jax.Array,
    *,
    config: ModelConfig,
    size: int,
    at_once: int,
    dtype: str,
    mesh: Mesh | None,
) -> cache_lib.Pages:
    """Prefills one prompt, piece by piece, so that its padding costs less than a piece.

    Args:
      params: weights, stacked or as `layouts.unstack` makes them.
      tokens: int32 [T], prompt and think_start, padded on the right; T divides by `size` and by a piece.
      length: int32 scalar, tokens of the prompt that are run: all but its last, which decoding feeds first.
      config: shape of the model.
      size: tokens of a page.
      at_once: pages, see `s1jax.model.attention.cached.attend_cached`.
      dtype: of activations and of the pages.
      mesh: None: one device.

    Returns:
      T / size pages, in order.
    """
    kind = jnp.dtype(dtype)
    piece = min(_CHUNK, tokens.shape[0])
    attend = parallel_ops.attend_cached(mesh, config.num_kv_heads, split_rows=False, pages_at_once=at_once)

    def run(index: jax.Array, cache: cache_lib.Cache) -> cache_lib.Cache:
        part = lax.dynamic_slice_in_dim(tokens, index * piece, piece)[None]
        count = jnp.minimum(length - index * piece, piece)[None]
        return decoder.forward_cached(params, config, part, cache, count, dtype=kind, attend=attend)[1]

    empty = cache_lib.init_cache(config, 1, tokens.shape[0], kind, size)
    return lax.fori_loop(0, (length + piece - 1) // piece, run, empty).pages


@functools.partial(jax.jit, static_argnames=("mesh", "kv_heads"), donate_argnames=("run",))
def admit(
    run: Run,
    settings: Settings,
    prompt: cache_lib.Pages,
    places: jax.Array,
    slot: jax.Array,
    last: jax.Array,
    length: jax.Array,
    num_forced: jax.Array,
    seen: jax.Array,
    *,
    mesh: Mesh | None,
    kv_heads: int,
) -> Run:
    """Puts a prompt into a slot, right after think_start.

    Args:
      run: all slots.
      settings: with those of the new request.
      prompt: of `prefill`.
      places: int32 [row shards, pages of `prompt`], pages of the cache that they are copied to; past the last one:
        they are not copied.
      slot: int32 scalar.
      last: int32 scalar, last id of prompt and think_start, which the cache does not hold.
      length: int32 scalar, ids in the cache.
      num_forced: int32 scalar, ids of think_start.
      seen: uint32 [W], ids of prompt and think_start.
      mesh: None: one device.
      kv_heads: of the model.
    """
    here = jnp.arange(run.lengths.shape[0]) == slot
    lasts, counts = jnp.full(here.shape, last), jnp.full(here.shape, num_forced)
    fresh = budget_lib.init(settings.rules, settings.budgets, lasts, counts, here)
    return dataclasses.replace(
        run,
        pages=parallel_ops.copy_pages(mesh, kv_heads)(run.pages, prompt, places),
        lengths=jnp.where(here, length, run.lengths),
        state=jax.tree.map(lambda new, old: jnp.where(here, new, old), fresh, run.state),
        seen=jnp.where(here[:, None], seen, run.seen),
    )


_DECODE_STATIC = ("config", "at_once", "in_place", "dtype", "mesh")


@functools.partial(jax.jit, static_argnames=_DECODE_STATIC, donate_argnames=("run",))
def decode(
    params: Mapping[str, Any],
    run: Run,
    settings: Settings,
    num_forced: jax.Array,
    steps: jax.Array,
    min_active: jax.Array,
    *,
    config: ModelConfig,
    at_once: int,
    in_place: bool,
    dtype: str,
    mesh: Mesh | None,
) -> tuple[Run, jax.Array]:
    """Takes up to `steps` steps with all slots, as long as more than `min_active` of them are not finished.

    Args:
      params: weights, stacked or as `layouts.unstack` makes them; `run.pages` likewise.
      run: all slots.
      settings: of the requests in them.
      num_forced: int32 scalar, ids of think_start.
      steps: int32 scalar.
      min_active: int32 scalar.
      config: shape of the model.
      at_once: pages, see `s1jax.model.attention.cached.attend_cached`.
      in_place: pages, see there.
      dtype: of activations.
      mesh: None: one device.

    Returns:
      The slots, and the number of steps that were taken, int32.
    """
    sampling, budgets, rules = settings.sampling, settings.budgets, settings.rules
    rows = jnp.arange(run.ids.shape[0])
    attend = parallel_ops.attend_cached(
        mesh, config.num_kv_heads, split_rows=True, pages_at_once=at_once, pages_in_place=in_place
    )

    def goes_on(carry: tuple[Run, jax.Array]) -> jax.Array:
        run, taken = carry
        return (taken < steps) & (jnp.sum(run.state.phase != budget_lib.FINISHED) > min_active)

    def step(carry: tuple[Run, jax.Array]) -> tuple[Run, jax.Array]:
        run, taken = carry
        old = run.state
        active = old.phase != budget_lib.FINISHED
        cache = cache_lib.Cache(run.pages, settings.table, run.lengths)
        hidden, cache = decoder.forward_cached(
            params, config, old.last[:, None], cache, active.astype(jnp.int32), dtype=jnp.dtype(dtype), attend=attend
        )
        logits = decoder.logits(params, config, hidden[:, 0])  # [B, V]

        # An empty wait makes a slot sample twice, with the same noise. A loop, so that the program holds the sampler
        # once; the second time all other slots are treated as greedy, which is cheapest.
        noise = logits_lib.noise(sampling, old.count, logits.shape[-1])

        def draw(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            first, again, _ = carry
            now = again | ~jnp.any(again)
            allowed = budget_lib.allowed(old.fresh | again, rules)
            scores = logits_lib.penalised(logits, run.seen, sampling)
            picked = logits_lib.pick(scores, allowed, logits_lib.only(sampling, now), old.count, noise)
            sampled = jnp.where(now, picked, first)
            lacking = budget_lib.lacks_wait(old, sampled, budgets, rules)
            return sampled, again | lacking, jnp.any(lacking)

        no = jnp.zeros_like(active)
        sampled, again, _ = lax.while_loop(lambda carry: carry[2], draw, (old.last, no, jnp.array(True)))
        state, emitted, forced = budget_lib.step(old, sampled, again, budgets, rules)
        place = jnp.where(active, old.count - num_forced, run.ids.shape[1])  # past the end: dropped
        logprob = jnp.where(active & ~forced, logits_lib.log_probability(logits, sampled), 0)
        run = Run(
            cache.pages,
            cache.lengths,
            state,
            run.ids.at[rows, place].set(emitted, mode="drop"),
            run.forced.at[rows, place].set(forced, mode="drop"),
            run.logprob.at[rows, place].set(logprob, mode="drop"),
            logits_lib.with_id(run.seen, emitted),
        )
        return run, taken + 1

    return lax.while_loop(goes_on, step, (run, jnp.zeros((), jnp.int32)))


@jax.jit
def read_ids(
    ids: jax.Array, forced: jax.Array, logprob: jax.Array, slot: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`ids`, `forced` and `logprob` of one slot, [S] each, out of those of all, [B, S].

    Not of a whole `Run`: pools of other sizes would need other programs.
    """
    return ids[slot], forced[slot], logprob[slot]


@functools.partial(jax.jit, donate_argnames=("run",))
def finish(run: Run, slot: jax.Array) -> Run:
    """Finishes the sequence in one slot, int32 scalar, at once."""
    phase = jnp.where(jnp.arange(run.lengths.shape[0]) == slot, budget_lib.FINISHED, run.state.phase)
    return dataclasses.replace(run, state=dataclasses.replace(run.state, phase=phase))
