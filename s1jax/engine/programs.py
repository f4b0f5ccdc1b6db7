"""Jitted programs of sampling: prefill a piece of a prompt, admit it to a batch slot, decode all slots.

One step of decoding runs the model on the last token of each slot, samples, lets `s1jax.engine.budget` replace or queue
tokens, and reports them. A wait, a cut or an answer is an array update on the device. The host looks at one report
after many steps. `s1jax.engine.device` calls these programs.

A program is compiled once for each model, number of slots and shape of the KV cache (`s1jax.engine.capacity`); prefill
also for each size of a piece. Budgets, waits of up to 64 tokens, temperatures and seeds cause no recompilation.

Axis letters: B batch slots, T tokens of a piece, M pages of a sequence, V vocabulary, R row shards, K `STEPS`, W words
of a set of token ids.
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
from s1jax.model import batched_adapters, decoder
from s1jax.model import cache as cache_lib
from s1jax.parallel import experts as parallel_experts
from s1jax.parallel import ops as parallel_ops
from s1jax.parallel import sharding

# Tokens of a prompt that run at one time: bounds the memory of a long prefill, with scores [N, this, pages at once].
PIECE = 512
STEPS = 64  # the most decode steps between two reports; a look of the host costs about 0.2 ms


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """What decoding carries from step to step.

    Attributes:
      pages: of the KV cache, stacked or one array a layer; they hold all tokens of each slot but the last one.
      lengths: int32 [B], tokens in the cache.
      state: of budget forcing.
      seen: uint32 [B, W], token ids of the prompt and of the sequence, see `s1jax.engine.logits.words`.
    """

    pages: Any
    lengths: jax.Array
    state: budget_lib.State
    seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """What a call of `decode` did; the host reads it in one transfer.

    Attributes:
      steps: int32 scalar, steps that were taken.
      state: of budget forcing, after them. A slot emitted as many tokens as its `count` grew by.
      ids: int32 [B, K], emitted token ids.
      forced: bool [B, K].
      logprobs: float32 [B, K], of each sampled token; 0 for forced ones.
    """

    steps: jax.Array
    state: budget_lib.State
    ids: jax.Array
    forced: jax.Array
    logprobs: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What the requests in the batch slots ask for.

    Attributes:
      sampling: of each slot.
      budgets: of each slot.
      rules: of each slot.
      table: int32 [B, M], pages of each slot.
      limits: int32 [B], the most tokens of the sequence in each slot.
      adapters: int32 [B], see `s1jax.model.batched_adapters.choose`.
    """

    sampling: logits_lib.Sampling
    budgets: budget_lib.Budgets
    rules: budget_lib.Rules
    table: jax.Array
    limits: jax.Array
    adapters: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("config", "slots", "pages", "size", "dtype", "unstack", "mesh"))
def start(
    config: ModelConfig,
    slots: int,
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
      pages: of the cache, for all slots.
      size: tokens of a page.
      dtype: of the cache; int8 is quantised.
      unstack: one array of pages a layer, as a loop with unstacked weights wants them.
      mesh: None: one device.
    """
    blank = cache_lib.init_pages(config, pages, size, dtype)
    if mesh is not None:
        blank = lax.with_sharding_constraint(blank, sharding.page_sharding(mesh, config.num_kv_heads))
    return Run(
        pages=cache_lib.unstack(blank) if unstack else blank,
        lengths=jnp.zeros(slots, jnp.int32),
        state=budget_lib.finished(slots),
        seen=jnp.zeros((slots, -(-config.vocab_size // 32)), jnp.uint32),
    )


@functools.partial(jax.jit, static_argnames=("config", "at_once", "dtype", "mesh"), donate_argnames=("pages",))
def prefill(
    params: Mapping[str, Any],
    pages: Any,
    tokens: jax.Array,
    table: jax.Array,
    lengths: jax.Array,
    count: jax.Array,
    limits: jax.Array,
    adapters: jax.Array | None = None,
    *,
    config: ModelConfig,
    at_once: int,
    dtype: str,
    mesh: Mesh | None,
) -> Any:
    """Runs one piece of a prompt, and writes its keys and values into the pages of its sequence.

    Args:
      params: weights, stacked or as `layouts.unstack` makes them.
      pages: of the cache.
      tokens: int32 [R, T], a piece for one row shard or more, padded on the right.
      table: int32 [R, M], pages of its sequence.
      lengths: int32 [R], tokens of the sequence before the piece.
      count: int32 [R], tokens of the piece; 0: nothing is written.
      limits: int32 [R], the most tokens of the sequence.
      adapters: int32 [R], see `s1jax.model.batched_adapters.choose`.
      config: shape of the model.
      at_once: pages, see `s1jax.model.attention.cached.attend_cached`.
      dtype: of activations.
      mesh: None: one device, and one row shard.

    Returns:
      The pages.
    """
    attend = parallel_ops.attend_cached(mesh, config.num_kv_heads, split_rows=True, pages_at_once=at_once)
    cache = cache_lib.Cache(pages, table, lengths, limits)
    kind = jnp.dtype(dtype)
    params = batched_adapters.choose(params, adapters)
    experts = parallel_experts.apply(mesh, split_tokens=False)
    hidden_and_cache = decoder.forward_cached(
        params, config, tokens, cache, count, dtype=kind, attend=attend, experts=experts
    )
    return hidden_and_cache[1].pages


@functools.partial(jax.jit, static_argnames=("mesh", "kv_heads"), donate_argnames=("pages",))
def copy_page(pages: Any, source: jax.Array, target: jax.Array, *, mesh: Mesh | None, kv_heads: int) -> Any:
    """Copies one page of a row shard to another one of it.

    Args:
      pages: of the cache.
      source: int32 [R], a page in each row shard.
      target: int32 [R]; past the last page: nothing is copied there.
      mesh: None: one device.
      kv_heads: of the model.
    """
    return parallel_ops.copy_page(mesh, kv_heads)(pages, source, target)


@functools.partial(jax.jit, donate_argnames=("run",))
def admit(
    run: Run, settings: Settings, slot: jax.Array, resumed: budget_lib.State, is_new: jax.Array, length: jax.Array,
    seen: jax.Array,
) -> Run:  # fmt: skip
    """Puts a sequence, whose keys and values are in the cache, into a slot.

    Args:
      run: all slots.
      settings: with those of the request.
      slot: int32 scalar; past the last one: nothing is done.
      resumed: scalars, where the sequence stands. Of a new one `last` and `count` are read.
      is_new: bool scalar; whether the sequence stands right after think_start.
      length: int32 scalar, tokens in the cache: all but the last.
      seen: uint32 [W], ids of the prompt and of the sequence.
    """
    here = jnp.arange(run.lengths.shape[0]) == slot
    lasts, counts = jnp.full(here.shape, resumed.last), jnp.full(here.shape, resumed.count)
    fresh = budget_lib.init(settings.rules, settings.budgets, lasts, counts, here)

    def pick(new: jax.Array, old: jax.Array, present: jax.Array) -> jax.Array:
        return jnp.where(here, jnp.where(is_new, new, old), present)

    return dataclasses.replace(
        run,
        lengths=jnp.where(here, length, run.lengths),
        state=jax.tree.map(pick, fresh, resumed, run.state),
        seen=jnp.where(here[:, None], seen, run.seen),
    )


_DECODE_STATIC = ("config", "at_once", "in_place", "dtype", "mesh")


@functools.partial(jax.jit, static_argnames=_DECODE_STATIC, donate_argnames=("run",))
def decode(
    params: Mapping[str, Any],
    run: Run,
    settings: Settings,
    steps: jax.Array,
    min_active: jax.Array,
    *,
    config: ModelConfig,
    at_once: int,
    in_place: bool,
    dtype: str,
    mesh: Mesh | None,
) -> tuple[Run, Report]:
    """Takes up to `steps` steps with all slots, as long as more than `min_active` of them are not finished.

    Args:
      params: weights, stacked or as `layouts.unstack` makes them; `run.pages` likewise.
      run: all slots.
      settings: of the requests in them.
      steps: int32 scalar, at most K.
      min_active: int32 scalar.
      config: shape of the model.
      at_once: pages, see `s1jax.model.attention.cached.attend_cached`.
      in_place: pages, see there.
      dtype: of activations.
      mesh: None: one device.

    Returns:
      The slots, and what was done.
    """
    sampling, budgets, rules = settings.sampling, settings.budgets, settings.rules
    params = batched_adapters.choose(params, settings.adapters)
    attend = parallel_ops.attend_cached(
        mesh, config.num_kv_heads, split_rows=True, pages_at_once=at_once, pages_in_place=in_place
    )
    experts = parallel_experts.apply(mesh, split_tokens=False)

    def goes_on(carry: tuple[Run, Report]) -> jax.Array:
        run, report = carry
        return (report.steps < steps) & (jnp.sum(run.state.phase != budget_lib.FINISHED) > min_active)

    def step(carry: tuple[Run, Report]) -> tuple[Run, Report]:
        run, report = carry
        old = run.state
        active = old.phase != budget_lib.FINISHED
        cache = cache_lib.Cache(run.pages, settings.table, run.lengths, settings.limits)
        hidden, cache = decoder.forward_cached(
            params, config, old.last[:, None], cache, active.astype(jnp.int32), dtype=jnp.dtype(dtype), attend=attend,
            experts=experts,
        )  # fmt: skip
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
        logprobs = jnp.where(active & ~forced, logits_lib.log_probability(logits, sampled), 0)

        def add(column: jax.Array, values: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(column, values[:, None], report.steps, axis=1)

        report = Report(
            report.steps + 1, state, add(report.ids, emitted), add(report.forced, forced),
            add(report.logprobs, logprobs),
        )  # fmt: skip
        return Run(cache.pages, cache.lengths, state, logits_lib.with_id(run.seen, emitted)), report

    shape = (run.lengths.shape[0], STEPS)
    blank = Report(
        jnp.zeros((), jnp.int32), run.state, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape)
    )
    return lax.while_loop(goes_on, step, (run, blank))


@functools.partial(jax.jit, donate_argnames=("run",))
def finish(run: Run, slot: jax.Array) -> Run:
    """Finishes the sequence in one slot, int32 scalar, at once."""
    phase = jnp.where(jnp.arange(run.lengths.shape[0]) == slot, budget_lib.FINISHED, run.state.phase)
    return dataclasses.replace(run, state=dataclasses.replace(run.state, phase=phase))


@functools.partial(jax.jit, donate_argnames=("run",))
def end_thinking(run: Run, settings: Settings, slot: jax.Array) -> Run:
    """Cuts the thinking of the sequence in one slot, int32 scalar, at once, if it still thinks."""
    here = jnp.arange(run.lengths.shape[0]) == slot
    return dataclasses.replace(run, state=budget_lib.cut(run.state, here, settings.rules))
