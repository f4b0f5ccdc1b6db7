"""Generation under a thinking budget: one prefill, then one jitted loop until the last row of the batch has ended.

The loop's body is: run the model on each row's last id, sample, let `s1jax.sample.budget` replace or queue ids, store.
The host gives orders twice per batch, whatever happens in it: a wait, a cut or an answer is an array update on the
device.
`_decode` takes its number of steps as an argument, so streaming to a terminal runs the same program in short pieces.

Compilation depends on the model, the batch size and two lengths, the prompts' and the cache's, both rounded up to a
few sizes; never on budgets, waits, temperatures or seeds. Give `cache_length` to share one program between calls whose
budgets differ much.

Axis letters: B batch, T prompt length, S cache slots, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from s1jax.config import Controls, Delimiters, InputError, ModelConfig
from s1jax.model import cache as cache_lib
from s1jax.model import decoder
from s1jax.sample import budget as budget_lib
from s1jax.sample import logits as logits_lib

_TO_THE_END = np.int32(2**31 - 1)
_STEPS_BETWEEN_REPORTS = np.int32(64)  # a report costs one host round trip, about 0.1 ms
_SMALLEST_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one row has emitted.

    Attributes:
      ids: int32 [n], all ids after the prompt, from think_start's first to the last; no padding.
      forced: bool [n], ids that were not sampled: think_start, waits, the closing sequence.
      thinking_tokens: ids between think_start and the closing sequence, waits included.
      answer_tokens: sampled ids after the closing sequence, the stop id included.
      waits: how often thinking was made to go on, by `num_waits` or by `min_thinking_tokens`.
      thinking_end: `natural` or `cut`; empty while the row thinks.
      answer_end: `stop` or `length`; empty while the row goes on.
      logprob: sum over the sampled ids of the model's own log-probability, without temperature or masks.
    """

    ids: np.ndarray
    forced: np.ndarray
    thinking_tokens: int
    answer_tokens: int
    waits: int
    thinking_end: str
    answer_end: str
    logprob: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Run:
    """What the loop carries.

    Attributes:
      cache: S slots per row; holds every id but the last emitted one.
      state: where each row stands.
      ids: int32 [B, S], emitted ids from think_start on.
      forced: bool [B, S].
      logprob: float32 [B].
    """

    cache: cache_lib.Cache
    state: budget_lib.State
    ids: jax.Array
    forced: jax.Array
    logprob: jax.Array


_Settings = tuple[logits_lib.Sampling, budget_lib.Budgets, budget_lib.Rules]


def generate(
    params: Mapping[str, Any],
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    controls: Sequence[Controls],
    delimiters: Delimiters,
    *,
    waits: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 0,
    cache_length: int = 0,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Samples one continuation of every prompt.

    A row's result does not depend on the rows beside it, up to the rounding of the matrix products, which for some
    sizes depends on the batch size: that can only show where two ids are as good as equally probable, and oftener in
    bfloat16 than in float32.

    Args:
      params: weights; cast once if their dtype is not `dtype`. On a CPU the layers are held twice (`decoder.unstack`).
      config: shape of the model.
      prompts: ids of each row, think_start not included.
      controls: one per prompt.
      delimiters: shared by all rows.
      waits: the wait of each row; None takes `delimiters.wait` for all.
      names: what rows are called in messages; `row 0`, ... by default.
      batch_size: rows that run at one time; 0 runs all at once. The last batch is filled up with rows that do nothing.
      cache_length: slots per row; 0 takes the smallest size that fits all rows.
      dtype: of activations and cache.
      progress: called now and then with the rows that are finished and the ids emitted so far, both over all batches.

    Returns:
      One sample per prompt, in the order of the prompts.

    Raises:
      InputError: before anything runs, if a row could outgrow the cache or the model's context, or has bad ids.
    """
    if not prompts:
        return []
    waits = [delimiters.wait] * len(prompts) if waits is None else waits
    names = [f"row {i}" for i in range(len(prompts))] if names is None else names
    slots = _slots(config, prompts, controls, delimiters, names, cache_length)
    batch_size = batch_size or len(prompts)
    params, loop_params = _prepare(params, dtype)
    # Rows of like length run together, so that few wait for a long one.
    limits = [_longest(p, c, delimiters) for p, c in zip(prompts, controls, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: limits[i])
    samples: dict[int, Sample] = {}
    num_ids = 0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        run, settings = _start(
            params, config, [prompts[i] for i in rows], [controls[i] for i in rows], delimiters,
            [waits[i] for i in rows], batch_size, slots, dtype,
        )  # fmt: skip
        if progress is None:
            run = _decode(loop_params, run, *settings, _TO_THE_END, config=config, dtype=dtype)
        while progress is not None:
            run = _decode(loop_params, run, *settings, _STEPS_BETWEEN_REPORTS, config=config, dtype=dtype)
            phase, count = jax.device_get((run.state.phase, run.state.count))
            finished = int((phase[: len(rows)] == budget_lib.FINISHED).sum())
            progress(start + finished, num_ids + int(count[: len(rows)].sum()))
            if finished == len(rows):
                break
        results = _collect(run, len(rows))
        num_ids += sum(len(sample.ids) for sample in results)
        samples.update(zip(rows, results, strict=True))
    return [samples[i] for i in range(len(prompts))]


def stream(
    params: Mapping[str, Any],
    config: ModelConfig,
    prompt: Sequence[int],
    controls: Controls,
    delimiters: Delimiters,
    *,
    cache_length: int = 0,
    dtype: str = "float32",
    steps: int = 4,
    name: str = "the prompt",
) -> Iterator[Sample]:
    """Samples one continuation and yields what there is of it after every `steps` ids; the last one is complete.

    Arguments and errors are those of `generate`, for one row. The host only reads between the pieces.
    """
    slots = _slots(config, [prompt], [controls], delimiters, [name], cache_length)
    params, loop_params = _prepare(params, dtype)
    run, settings = _start(params, config, [prompt], [controls], delimiters, [delimiters.wait], 1, slots, dtype)
    while True:
        run = _decode(loop_params, run, *settings, np.int32(steps), config=config, dtype=dtype)
        (sample,) = _collect(run, 1)
        yield sample
        if sample.answer_end:
            return


def _prepare(params: Mapping[str, Any], dtype: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the weights in `dtype`, for the prefill and for the loop."""
    if any(leaf.dtype != jnp.dtype(dtype) for leaf in jax.tree.leaves(params)):
        params = _cast(params, dtype)
    return params, _unstack(params) if _on_cpu(params) else params


def _on_cpu(params: Mapping[str, Any]) -> bool:
    return all(device.platform == "cpu" for device in jax.tree.leaves(params)[0].devices())


@functools.partial(jax.jit, static_argnames=("dtype",))
def _cast(params: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


_unstack = jax.jit(decoder.unstack)


def _longest(prompt: Sequence[int], controls: Controls, delimiters: Delimiters) -> int:
    """The most ids that a row can come to, prompt included."""
    forced = (delimiters.think_start, delimiters.newline, delimiters.think_end, delimiters.final_answer)
    return len(prompt) + sum(map(len, forced)) + controls.max_thinking_tokens + controls.max_answer_tokens


def _slots(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    controls: Sequence[Controls],
    delimiters: Delimiters,
    names: Sequence[str],
    cache_length: int,
) -> int:
    """Checks every row and returns the number of cache slots."""
    if cache_length > config.context_length:
        raise InputError(
            f"cache_length {cache_length} exceeds the model's context_length {config.context_length}; give less."
        )
    limit = cache_length or config.context_length
    longest = 0
    for prompt, control, name in zip(prompts, controls, names, strict=True):
        if not prompt and not delimiters.think_start:
            raise InputError(f"{name}: the prompt is empty; give at least one id.")
        bad = [i for i in prompt if not 0 <= i < config.vocab_size]
        if bad:
            raise InputError(
                f"{name}: prompt id {bad[0]} lies outside the model's vocabulary of {config.vocab_size} ids."
            )
        ids = _longest(prompt, control, delimiters)
        if ids > limit:
            what = "cache length" if cache_length else "model's context length"
            raise InputError(
                f"{name}: a prompt of {len(prompt)} ids, {control.max_thinking_tokens} of thinking,"
                f" {control.max_answer_tokens} of answer and the delimiters come to {ids} ids,"
                f" but the {what} is {limit}; lower max_thinking_tokens or max_answer_tokens, or shorten the prompt."
            )
        longest = max(longest, ids)
    return cache_length or min(_bucket(longest), config.context_length)


def _bucket(length: int) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, ... that holds `length`."""
    size = _SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _start(
    params: Mapping[str, Any],
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    controls: Sequence[Controls],
    delimiters: Delimiters,
    waits: Sequence[Sequence[int]],
    batch_size: int,
    slots: int,
    dtype: str,
) -> tuple[_Run, _Settings]:
    """Lays out a batch and prefills it; rows beyond the prompts are finished from the beginning."""
    missing = batch_size - len(prompts)
    controls = [*controls, *[Controls()] * missing]
    lengths = np.array([len(p) + len(delimiters.think_start) for p in prompts] + [1] * missing, np.int32)
    tokens = np.zeros((batch_size, min(_bucket(max(lengths.tolist())), slots)), np.int32)
    for b, prompt in enumerate(prompts):
        tokens[b, : lengths[b]] = [*prompt, *delimiters.think_start]
    ids = np.zeros((batch_size, slots), np.int32)
    ids[:, : len(delimiters.think_start)] = delimiters.think_start
    rules = budget_lib.Rules.of(delimiters, config.vocab_size, [*waits, *[()] * missing])
    settings = (logits_lib.Sampling.of(controls), budget_lib.Budgets.of(controls), rules)
    settings = jax.device_put(settings)
    run = _prefill(
        params, tokens, lengths, ids, np.int32(len(delimiters.think_start)), np.int32(len(prompts)), *settings[1:],
        config=config, dtype=dtype, unstack=_on_cpu(params),
    )  # fmt: skip
    return run, settings


@functools.partial(jax.jit, static_argnames=("config", "dtype", "unstack"))
def _prefill(
    params: Mapping[str, Any],
    tokens: jax.Array,
    lengths: jax.Array,
    ids: jax.Array,
    num_forced: jax.Array,
    num_rows: jax.Array,
    budgets: budget_lib.Budgets,
    rules: budget_lib.Rules,
    *,
    config: ModelConfig,
    dtype: str,
    unstack: bool,
) -> _Run:
    """Fills the cache with all but each row's last id, which the loop feeds first.

    Args:
      params: weights.
      tokens: int32 [B, T], prompt and think_start, padded on the right.
      lengths: int32 [B], ids of each row in `tokens`.
      ids: int32 [B, S], think_start at the front.
      num_forced: int32 scalar, ids of think_start.
      num_rows: int32 scalar, rows that hold a prompt.
      budgets: of the rows.
      rules: of the rows.
      config: shape of the model.
      dtype: of activations and cache.
      unstack: whether the loop wants its cache unstacked, as it does with unstacked weights.
    """
    batch, slots = ids.shape
    kind = jnp.dtype(dtype)
    cache = cache_lib.init_cache(config, batch, slots, kind)
    _, cache = decoder.forward_cached(params, config, tokens, cache, lengths - 1, dtype=kind)
    last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    count = jnp.full((batch,), num_forced)
    state = budget_lib.init(rules, budgets, last, count, jnp.arange(batch) < num_rows)
    forced = jnp.broadcast_to(jnp.arange(slots) < num_forced, ids.shape)
    cache = cache_lib.unstack(cache) if unstack else cache
    return _Run(cache, state, ids, forced, jnp.zeros(batch, jnp.float32))


@functools.partial(jax.jit, static_argnames=("config", "dtype"), donate_argnames=("run",))
def _decode(
    params: Mapping[str, Any],
    run: _Run,
    sampling: logits_lib.Sampling,
    budgets: budget_lib.Budgets,
    rules: budget_lib.Rules,
    steps: jax.Array,
    *,
    config: ModelConfig,
    dtype: str,
) -> _Run:
    """Takes `steps` steps, or fewer if every row has finished before."""
    rows = jnp.arange(run.ids.shape[0])

    def unfinished(carry: tuple[_Run, jax.Array]) -> jax.Array:
        run, steps_left = carry
        return (steps_left > 0) & jnp.any(run.state.phase != budget_lib.FINISHED)

    def step(carry: tuple[_Run, jax.Array]) -> tuple[_Run, jax.Array]:
        run, steps_left = carry
        old = run.state
        active = old.phase != budget_lib.FINISHED
        hidden, cache = decoder.forward_cached(
            params, config, old.last[:, None], run.cache, active.astype(jnp.int32), dtype=jnp.dtype(dtype)
        )
        logits = decoder.logits(params, config, hidden[:, 0])  # [B, V]

        # An empty wait makes a row sample twice. A loop, so that the program holds the sampler once.
        def draw(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            _, without_end, _ = carry
            sampled = logits_lib.pick(logits, budget_lib.allowed(old.fresh | without_end, rules), sampling, old.count)
            lacking = budget_lib.lacks_wait(old, sampled, budgets, rules)
            return sampled, without_end | lacking, jnp.any(lacking)

        no = jnp.zeros_like(active)
        sampled, again, _ = lax.while_loop(lambda carry: carry[2], draw, (old.last, no, jnp.array(True)))
        state, emitted, forced = budget_lib.step(old, sampled, again, budgets, rules)
        place = jnp.where(active, old.count, run.ids.shape[1])  # past the end: dropped
        logprob = jnp.where(active & ~forced, logits_lib.log_probability(logits, sampled), 0)
        run = _Run(
            cache,
            state,
            run.ids.at[rows, place].set(emitted, mode="drop"),
            run.forced.at[rows, place].set(forced, mode="drop"),
            run.logprob + logprob,
        )
        return run, steps_left - 1

    return lax.while_loop(unfinished, step, (run, steps))[0]


def _collect(run: _Run, num_rows: int) -> list[Sample]:
    """Reads the first `num_rows` rows from the device."""
    state, ids, forced, logprob = jax.device_get((run.state, run.ids, run.forced, run.logprob))
    samples = []
    for b in range(num_rows):
        count = int(state.count[b])
        ended = "" if state.phase[b] != budget_lib.FINISHED else "stop" if state.stopped[b] else "length"
        closed = "" if state.phase[b] == budget_lib.THINKING else "cut" if state.cut[b] else "natural"
        samples.append(
            Sample(
                ids=ids[b, :count].copy(),
                forced=forced[b, :count].copy(),
                thinking_tokens=int(state.thinking[b]),
                answer_tokens=int(state.answer[b]),
                waits=int(state.waits[b]),
                thinking_end=closed,
                answer_end=ended,
                logprob=float(logprob[b]),
            )
        )
    return samples
