"""What the HTTP APIs have in common: a parsed request, a result, the count of tokens, an event."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from s1jax.config.sampling import SamplingParams
from s1jax.engine.request import Output, Request
from s1jax.errors import UserError
from s1jax.serve.reader import ApiError as ApiError
from s1jax.serve.reader import Reader
from s1jax.text.delimiters import Delimiters
from s1jax.text.messages import Message

Api = Literal["chat", "completions", "responses", "messages"]
# An event of a stream: its name, empty for events without one, and its data.
Event = tuple[str, dict[str, Any]]
# Thinking tokens of `reasoning_effort`, as litellm has them.
EFFORTS = {"minimal": 128, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
REASONING_NAMES = ("reasoning", "reasoning_content")


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a server uses where a request is silent.

    Attributes:
      model: name of the served model, in requests and replies.
      context_length: of the model, in tokens; a server with a shorter cache gives that.
      params: sampling parameters. Temperature is 1 unless the operator sets another, as in OpenAI's API.
      aliases: further names that requests may give the model.
      adapters: names of the engine's adapters; as the model of a request they ask for it.
      efforts: thinking tokens of each word of `reasoning_effort`, `none` excepted.
      prompt_efforts: the words that the chat format writes into the prompt (gpt-oss); they set no number of tokens.
      reasoning_names: names of the field of thinking in chat replies.
      max_samples: most samples of a prompt, `n`.
      max_prompts: most prompts of a request.
      tools: whether the chat format has them.
    """

    model: str
    context_length: int
    params: SamplingParams = dataclasses.field(default_factory=lambda: SamplingParams(temperature=1.0))
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    efforts: Mapping[str, int] = dataclasses.field(default_factory=lambda: EFFORTS)
    prompt_efforts: tuple[str, ...] = ()
    reasoning_names: tuple[str, ...] = REASONING_NAMES
    max_samples: int = 16
    max_prompts: int = 64
    tools: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """A parsed request of any API.

    Attributes:
      api: whose form the reply has.
      id: of the reply.
      created: seconds since 1970.
      model: name in the reply.
      prompts: what is answered, each `params.n` times: the messages of a conversation; or, of `/v1/completions`, text
        or ids that are used without a chat template.
      params: sampling parameters, with a seed. Upper bounds may exceed what the context leaves, see `fit`.
      tools: JSON schemas of the functions that the answer may call; empty: the answer is text.
      one_tool_call: whether only the first call in the answer counts.
      given: the fields of `params` that the request sets itself, and their values.
      max_completion_tokens: bound of thinking, answer and delimiters together; 0: none.
      stream: whether the reply is a stream.
      include_usage: whether a stream of OpenAI's older APIs ends with the count of tokens.
      running_usage: whether every chunk has the count of tokens so far.
      include_reasoning: whether thinking is sent; it is counted anyway.
      reasoning_names: names of the field of thinking in chat replies.
      logprobs: whether log-probabilities of the answer's tokens are sent.
      echo: whether the prompt is repeated before the answer.
      only_prompt: nothing is sampled; the reply is `Echo` with its log-probabilities. With `max_completion_tokens` 1 it
        has the most probable next token as well.
      priority: lower goes first.
      salt: separates the prefix cache of this request from others.
      think_longer: id of a finished reply whose thinking goes on; empty: none.
      handoff: `never`, `ask` or `auto`; empty: the server's default.
      max_cost: most US dollars for a hand-off; None: the server's limit.
      ignored: accepted fields that have no effect.
      repeated: fields of the reply that repeat those of the request.
    """

    api: Api
    id: str
    created: int
    model: str
    prompts: tuple[str | tuple[int, ...] | tuple[Message, ...], ...]
    params: SamplingParams
    tools: tuple[Mapping[str, Any], ...] = ()
    one_tool_call: bool = False
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_completion_tokens: int = 0
    stream: bool = False
    include_usage: bool = False
    running_usage: bool = False
    include_reasoning: bool = True
    reasoning_names: tuple[str, ...] = REASONING_NAMES
    logprobs: bool = False
    echo: bool = False
    only_prompt: bool = False
    priority: int = 0
    salt: str = ""
    think_longer: str = ""
    handoff: str = ""
    max_cost: float | None = None
    ignored: tuple[str, ...] = ()
    repeated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_choices(self) -> int:
        """How many results the reply has: those of the first prompt, then those of the second, ..."""
        return len(self.prompts) * self.params.n if not self.think_longer else 1

    def requests(self, encode: Callable[[str], Sequence[int]]) -> list[Request]:
        """Returns a request of the engine for each prompt.

        Args:
          encode: text -> ids, for prompts without a chat template.
        """
        found = []
        for i, prompt in enumerate(self.prompts):
            name = "the prompt" if len(self.prompts) == 1 else f"prompt {i}"
            if self.api == "completions":
                ids = encode(prompt) if isinstance(prompt, str) else prompt
                found.append(Request(prompt_ids=ids, params=self.params, name=name, index=i))  # type: ignore[arg-type]
            else:
                messages: Any = list(prompt)
                found.append(Request(prompt=messages, params=self.params, name=name, tools=self.tools))
        return found


@dataclasses.dataclass(frozen=True)
class Echo:
    """The prompt of `/v1/completions` with `echo`.

    Attributes:
      text: of the prompt.
      tokens: text of each of its tokens.
      logprobs: log-probability of each token in nats; None for the first.
      top: for each token, the most probable token at its place and that one's log-probability; None for the first.
      next: the most probable token after the prompt and its log-probability, for `Call.only_prompt`; None: nothing is
        sampled.
    """

    text: str
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    top: tuple[tuple[str, float] | None, ...] = ()
    next: tuple[str, float] | None = None


def empty_output(params: SamplingParams) -> Output:
    """Returns the output of a sequence that has no tokens."""
    return Output(
        thinking="", answer="", token_ids=(), forced=(), logprobs=(), logprob=0.0, thinking_tokens=0, answer_tokens=0,
        waits=0, thinking_end="natural", answer_end="length", stop_reason=None, params=params,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished sequence, as the writers need it.

    Attributes:
      output: of the engine.
      prompt_ids: number of tokens of the prompt, without think_start.
      delimiters: of the engine.
      cached_tokens: of the prompt, found in the prefix cache.
      device_seconds: what this sequence had of the device.
      token_texts: text of each of `output.token_ids`, for `Call.logprobs`.
      echo: the prompt, for `Call.echo`.
      model: who answered, if it was another model.
      handoff: what was decided about a hand-off; None: nothing was.
      remote_cost: US dollars that the other model costs.
    """

    output: Output
    prompt_ids: int
    delimiters: Delimiters
    cached_tokens: int = 0
    device_seconds: float = 0.0
    token_texts: tuple[str, ...] = ()
    echo: Echo | None = None
    model: str = ""
    handoff: Mapping[str, Any] | None = None
    remote_cost: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt and of think_start."""
        return self.prompt_ids + min(len(self.delimiters.think_start), len(self.output.token_ids))

    @property
    def completion_tokens(self) -> int:
        """All tokens after think_start, forced ones and the stop token included."""
        return len(self.output.token_ids) - (self.prompt_tokens - self.prompt_ids)

    @property
    def answer(self) -> range:
        """Places in `output.token_ids` of the answer's text: "Final Answer:" included, stop token excluded."""
        output = self.output
        end = len(output.token_ids)
        forced = len(self.delimiters.final_answer) if output.thinking_end != "natural" else 0
        begin = end - output.answer_tokens - forced if output.answer_tokens else end
        return range(begin, end - (output.answer_end == "stop" and output.stop_reason is None and begin < end))

    def thinking(self) -> dict[str, Any]:
        """Returns the object `thinking` of a choice."""
        output, start = self.output, self.prompt_tokens - self.prompt_ids
        forced = sum(output.forced[start:])
        sampled = self.completion_tokens - forced
        return {
            "end": output.thinking_end,
            "tokens": output.thinking_tokens,
            "waits": output.waits,
            "forced_tokens": forced,
            "mean_logprob": output.logprob / sampled if sampled else None,
        }


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens and money of a reply.

    Attributes:
      prompt_tokens: prompt and think_start; once for all samples of a prompt.
      completion_tokens: all tokens after that, of all samples.
      reasoning_tokens: those between think_start and the closing delimiters.
      cached_tokens: of the prompt, found in the prefix cache.
      device_seconds: of all samples.
      cost: US dollars; None: no price is known.
      cost_details: how the cost comes about.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int = 0
    device_seconds: float = 0.0
    cost: float | None = None
    cost_details: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, call: Call, results: Sequence[Result]) -> Usage:
        """Counts the results of a call."""
        first = results[:: max(1, len(results) // max(1, len(call.prompts)))]
        return cls(
            sum(result.prompt_tokens for result in first),
            sum(result.completion_tokens for result in results),
            sum(result.output.thinking_tokens for result in results),
            sum(result.cached_tokens for result in first),
            sum(result.device_seconds for result in results),
        )

    def _money(self) -> dict[str, Any]:
        return {} if self.cost is None else {"cost": self.cost, "cost_details": dict(self.cost_details)}

    def openai(self) -> dict[str, Any]:
        """Returns the object of `/v1/chat/completions` and `/v1/completions`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            **self._money(),
        }

    def responses(self) -> dict[str, Any]:
        """Returns the object of `/v1/responses`."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            **self._money(),
        }

    def anthropic(self) -> dict[str, Any]:
        """Returns the object of `/v1/messages`, whose input tokens are those that were not cached."""
        return {
            "input_tokens": self.prompt_tokens - self.cached_tokens,
            "cache_read_input_tokens": self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.reasoning_tokens},
            **self._money(),
        }


# Turns the results of a call into its `Usage`; `s1jax.serve.prices` has one that knows prices.
Count = Callable[[Call, Sequence[Result]], Usage]


def model(reader: Reader, defaults: Defaults) -> str:
    """Reads `model` and returns the name for the reply.

    Raises:
      ApiError: 404 for a model that is not served.
    """
    name = reader.text("model")
    if not name or name in (defaults.model, *defaults.aliases, *defaults.adapters):
        return name or defaults.model
    names = ", ".join(map(repr, (defaults.model, *defaults.adapters)))
    raise ApiError(
        f"the model {name[:200]!r} is not served here; write {names}, or leave model out.",
        "model", "model_not_found", "not_found_error", 404,
    )  # fmt: skip


def identity(prefix: str) -> tuple[str, int]:
    """Returns a new id that begins with `prefix`, and the time in seconds since 1970."""
    return f"{prefix}{secrets.token_hex(16)}", int(time.time())


def ignored(reader: Reader) -> tuple[str, ...]:
    """Returns the paths of fields that have no effect, each once whatever its place in a list, at most 64.

    Raises:
      ApiError: a field has nearly the name of one that is read.
    """
    paths = (re.sub(r"\[\d+\]", "[]", path) for path in reader.rest())
    return tuple(dict.fromkeys(paths))[:64]


def sampling_params(defaults: Defaults, given: Mapping[str, Any]) -> SamplingParams:
    """Returns the sampling parameters of a request that sets the fields `given`; draws a seed if it sets none.

    Raises:
      ApiError: 400, the fields do not go together.
    """
    seed: dict[str, Any] = {} if "seed" in given else {"seed": secrets.randbits(32)}
    try:
        return dataclasses.replace(defaults.params, **seed, **given)
    except UserError as error:
        word = str(error).split(" ", 1)[0]
        raise ApiError(str(error), word if word in given else None) from None


def sse(events: Iterable[Event]) -> bytes:
    """Returns events as server-sent events, in ASCII: some clients end a line at U+0085 or U+2028 as well."""
    lines = ((f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n" for name, data in events)
    return "".join(lines).encode()


DONE = b"data: [DONE]\n\n"  # ends a stream of OpenAI's older APIs


class OpenAIStream:
    """What the streams of OpenAI's two older APIs share: they end in `[DONE]` and fail with an error object."""

    done = DONE

    def fail(self, error: ApiError) -> list[Event]:
        """Returns the events of an error after the stream has begun."""
        return [("", error.body())]
