"""What a user asks the engine for, and what comes back: `Request`, `Output`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.config.sampling import SamplingParams
from s1jax.text.messages import Message

# Finished sequences, tokens and thinking tokens so far, those of running sequences included.
EngineProgress = Callable[[int, int, int], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt with how to sample it.

    Attributes:
      prompt: a question as text, or the messages of a conversation; the chat template is put around it. None if
        `prompt_ids` is given.
      prompt_ids: token ids, used without a chat template; the token ids of think_start are forced after them.
      params: sampling parameters; None takes those of the call.
      system: system prompt; None takes that of the call. Empty: that of the chat template, if it has one.
      name: what error messages call the request; empty: its place in the call.
      index: mixed into `params.seed`, so that equal prompts get different noise; with 0 the noise is that of
        `params.seed` itself. None takes 0 if the request has `params`, and its place in the call if it has not.
      tools: JSON schemas of the functions that the assistant may call, as OpenAI's API has them. Only some
        chat formats have tools.
      adapter: name of one of the engine's adapters; empty: the model without one.
    """

    prompt: str | Sequence[Message] | None = None
    prompt_ids: Sequence[int] | None = None
    params: SamplingParams | None = None
    system: str | None = None
    name: str = ""
    index: int | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    adapter: str = ""


@dataclasses.dataclass(frozen=True)
class Output:
    """One sampled sequence.

    Attributes:
      thinking: text of the thinking, without delimiters and outer white space.
      answer: text of the answer, without stop token, stop string and outer white space. After thinking that was cut it
        begins with the forced "Final Answer:".
      token_ids: all tokens after the prompt, from think_start's first to the last.
      forced: for each token, whether it was forced (think_start, waits, closing delimiters) and not sampled.
      logprobs: for each token, the model's log-probability in nats, without temperature and masks; 0 if it was forced.
      logprob: sum of `logprobs`.
      thinking_tokens: number of tokens between think_start and the closing delimiters, waits included.
      answer_tokens: number of sampled tokens of the answer, the stop token included.
      waits: how often an end of thinking was replaced, by `num_waits` or by `min_thinking_tokens`.
      thinking_end: `natural` or `cut`.
      answer_end: `stop` (a stop token or a stop string) or `length`.
      stop_reason: the stop string that ended the answer; None if none did.
      params: the sampling parameters that were used; `seed` is that of this sequence and `n` is 1.
      sample_index: of the `n` samples of a request, from 0.
      num_samples: how many samples the request has.
      system: system prompt that was used; empty: that of the chat template.
    """

    thinking: str
    answer: str
    token_ids: tuple[int, ...]
    forced: tuple[bool, ...]
    logprobs: tuple[float, ...]
    logprob: float
    thinking_tokens: int
    answer_tokens: int
    waits: int
    thinking_end: str
    answer_end: str
    stop_reason: str | None
    params: SamplingParams
    sample_index: int = 0
    num_samples: int = 1
    system: str = ""
