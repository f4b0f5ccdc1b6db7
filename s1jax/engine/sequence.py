"""One sequence of tokens in the engine: what it asks for and what was sampled for it, without text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.text.delimiters import Delimiters

if TYPE_CHECKING:  # it loads jax
    from s1jax.engine.budget import State


@dataclasses.dataclass(frozen=True)
class EncodedRequest:
    """A request for one sequence, as token ids.

    Attributes:
      prompt: token ids, without think_start.
      params: budgets and how to sample. `seed` is that of this sequence alone: sequences with one seed get the same
        noise. The texts `stop` and `wait` are not read.
      wait: token ids of the wait string; empty: the end ids are masked instead.
      name: what error messages call it.
      find_stop: finds the stop string that ends the answer, see `s1jax.engine.stops.Finder`; None: there is none.
      resume: thinking that the sequence begins with, see `s1jax.engine.resume`; None: none.
      adapter: name of one of the engine's adapters; empty: none.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    wait: tuple[int, ...] = ()
    name: str = "the row"
    find_stop: Callable[[Sequence[int], int], tuple[int, str] | None] | None = None
    resume: Resume | None = None
    adapter: str = ""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Where a sequence goes on that was sampled in part before.

    Attributes:
      ids: int32 [n], tokens after think_start.
      forced: bool [n].
      logprobs: float32 [n].
      state: of budget forcing after them, scalars.
      stopped: thinking was ended by `Scheduler.end_thinking`.
    """

    ids: np.ndarray
    forced: np.ndarray
    logprobs: np.ndarray
    state: State
    stopped: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was sampled for one sequence, complete or so far.

    Attributes:
      ids: int32 [n], all token ids after the prompt, from think_start's first to the last; no padding.
      forced: bool [n], tokens that were forced and not sampled: think_start, waits, the closing delimiters.
      thinking_tokens: number of tokens between think_start and the closing delimiters, waits included.
      answer_tokens: number of sampled tokens after the closing delimiters, the stop id included.
      waits: how often an end of thinking was replaced, by `num_waits` or by `min_thinking_tokens`.
      thinking_end: `natural`, `cut`, or `stopped` (cut by `Scheduler.end_thinking`); empty while the sequence thinks.
      answer_end: `stop` or `length`; empty until the sequence is finished.
      logprob: sum of `logprobs`.
      logprobs: float32 [n], the model's log-probability of each token in nats, without temperature and masks; 0 for
        forced tokens.
      stop_reason: the stop string that ended the answer; None if a stop id or the length did.
      cached_tokens: tokens of the prompt that were in the prefix cache.
      waits_left: waits that `num_waits` still allows.
    """

    ids: np.ndarray
    forced: np.ndarray
    thinking_tokens: int
    answer_tokens: int
    waits: int
    thinking_end: str
    answer_end: str
    logprob: float
    logprobs: np.ndarray
    stop_reason: str | None = None
    cached_tokens: int = 0
    waits_left: int = 0

    @property
    def was_cut(self) -> bool:
        """Whether thinking was cut, so that the closing sequence is that of a cut."""
        return self.thinking_end in ("cut", "stopped")


@dataclasses.dataclass(frozen=True)
class Admitted:
    """A request that is streamed has a batch slot; its prompt is prefilled next."""

    id: int


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A request that is streamed goes on; `sample` is everything so far."""

    id: int
    sample: Sample


@dataclasses.dataclass(frozen=True)
class Finished:
    """A request is finished."""

    id: int
    sample: Sample


Event = Admitted | Tokens | Finished


def answer_begin(sample: Sample, delimiters: Delimiters) -> tuple[int, int]:
    """Returns the place of an answer's first token in a sample that has one, and how many of its tokens are forced."""
    num_forced = len(delimiters.final_answer) if sample.was_cut else 0
    # Counted from the end, because a newline is forced before think_end in some sequences only.
    return len(sample.ids) - sample.answer_tokens - num_forced, num_forced


def longest(request: EncodedRequest, delimiters: Delimiters) -> int:
    """Returns the most tokens that a sequence can have, prompt included."""
    forced = (delimiters.think_start, delimiters.newline, delimiters.think_end, delimiters.final_answer)
    params = request.params
    sampled = sum(map(len, forced[1:])) + params.max_thinking_tokens + params.max_answer_tokens
    if params.max_completion_tokens:
        sampled = min(sampled, params.max_completion_tokens)
    return len(request.prompt) + len(delimiters.think_start) + sampled


def bounded(params: SamplingParams, delimiters: Delimiters, name: str) -> SamplingParams:
    """Returns parameters whose thinking leaves room for an answer in `max_completion_tokens`, if that is given.

    Raises:
      UserError: the closing delimiters and one token of an answer, or the minimum of thinking, do not fit.
    """
    total = params.max_completion_tokens
    if not total:
        return params
    closing = len(delimiters.newline) + len(delimiters.think_end) + len(delimiters.final_answer)
    if total <= closing:
        raise UserError(
            f"{name}: max_completion_tokens is {total}, but the delimiters that end thinking have {closing} tokens;"
            f" give at least {closing + 1}."
        )
    reserve = min(params.max_answer_tokens, max(total // 4, 1))
    most = min(params.max_thinking_tokens, max(total - closing - reserve, 0))
    if params.min_thinking_tokens > most:
        raise UserError(
            f"{name}: min_thinking_tokens is {params.min_thinking_tokens}, but max_completion_tokens of {total} leaves"
            f" {most} for thinking; raise max_completion_tokens or lower min_thinking_tokens."
        )
    return dataclasses.replace(params, max_thinking_tokens=most)


def check_length(request: EncodedRequest, ids: int, limit: int, what: str = "model's context length") -> None:
    """Checks that `ids`, the `longest` of the request, is at most `limit`.

    Raises:
      UserError: it is more; names the request, its lengths, and the limit as `what`.
    """
    params = request.params
    if ids > limit:
        raise UserError(
            f"{request.name}: a prompt of {len(request.prompt)} ids, {params.max_thinking_tokens} of thinking,"
            f" {params.max_answer_tokens} of answer and the delimiters are {ids} ids together, but the {what} is"
            f" {limit}; lower max_thinking_tokens or max_answer_tokens, or shorten the prompt."
        )


def check_request(request: EncodedRequest, delimiters: Delimiters, config: ModelConfig, cache_length: int) -> int:
    """Checks a request before anything runs; returns the most tokens that its sequence can have, see `longest`.

    Args:
      request: what is to be sampled.
      delimiters: of the chat format.
      config: shape of the model.
      cache_length: the most tokens of a sequence; 0: the model's context length.

    Raises:
      UserError: the prompt is empty or has an id outside the vocabulary, or the sequence could become too long.
    """
    prompt, name = request.prompt, request.name
    if not prompt and not delimiters.think_start:
        raise UserError(f"{name}: the prompt is empty; give at least one id.")
    bad = [i for i in prompt if not 0 <= i < config.vocab_size]
    if bad:
        raise UserError(f"{name}: prompt id {bad[0]} is outside the model's vocabulary of {config.vocab_size} ids.")
    limit, what = (cache_length, "cache length") if cache_length else (config.context_length, "model's context length")
    tokens = longest(request, delimiters)
    check_length(request, tokens, limit, what)
    return tokens


def until_stop(request: EncodedRequest, sample: Sample, delimiters: Delimiters) -> Sample:
    """Returns the sample up to the token that completes a stop string; all of it if there is none."""
    if request.find_stop is None or not sample.answer_tokens:
        return sample
    begin, num_forced = answer_begin(sample, delimiters)
    end = len(sample.ids) - (sample.answer_end == "stop")
    found = request.find_stop(sample.ids[begin:end].tolist(), num_forced)
    if found is None:
        return sample
    count, start = begin + found[0], len(delimiters.think_start)
    return dataclasses.replace(
        sample,
        ids=sample.ids[:count],
        forced=sample.forced[:count],
        answer_tokens=found[0] - num_forced,
        answer_end="stop",
        stop_reason=found[1],
        logprob=float(sample.logprobs[start:count].sum(dtype=np.float64)),
        logprobs=sample.logprobs[:count],
    )
