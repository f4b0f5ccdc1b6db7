"""An OpenAI-compatible endpoint in the place of the engine: it answers the problems of a run."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from s1jax.config.sampling import SamplingParams
from s1jax.engine.request import EngineProgress, Output, Request
from s1jax.errors import UserError
from s1jax.remote.client import Client, Endpoint, RemoteError
from s1jax.remote.reply import Completion


@dataclasses.dataclass(frozen=True)
class RemoteOutput(Output):
    """An answer of an endpoint: texts and counts, without tokens and log-probabilities.

    Attributes:
      usage: what it is billed for, with the names of `reply.Usage`; empty where the endpoint does not say.
    """

    usage: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class RemoteEngine:
    """Asks an endpoint, several questions at a time."""

    def __init__(self, endpoint: Endpoint, *, max_tokens: int = 0, at_once: int = 8):
        """Makes no connection yet.

        Args:
          endpoint: answers.
          max_tokens: most tokens of an answer, thinking included; 0: the endpoint decides.
          at_once: questions that are asked at one time.
        """
        self.endpoint = endpoint
        self._max_tokens, self._at_once = max_tokens, at_once

    def stream(
        self,
        prompts: Iterable[Request],
        params: SamplingParams | None = None,
        /,
        *,
        system: str = "",
        progress: EngineProgress | None = None,
    ) -> Iterator[tuple[int, Output]]:
        """Yields (place in `prompts`, answer) as answers arrive. Of the parameters nothing is sent.

        Raises:
          UserError: the endpoint does not answer one of them; those before it were yielded.
        """
        found: queue.Queue[tuple[int, RemoteOutput] | BaseException | None] = queue.Queue()
        stop = threading.Event()
        asked = list(prompts)

        def work() -> None:
            try:
                asyncio.run(self._ask(asked, params or SamplingParams(), system, found, stop))
                found.put(None)
            except BaseExceptionGroup as group:  # the first failure has cancelled the others
                found.put(group.exceptions[0])
            except BaseException as error:
                found.put(error)

        thread = threading.Thread(target=work, name="remote", daemon=True)
        thread.start()
        done = tokens = thinking = 0
        try:
            while (item := found.get()) is not None:
                if isinstance(item, RemoteError):
                    raise UserError(f"the remote does not answer: {item}; the same command goes on from here.")
                if isinstance(item, BaseException):
                    raise item
                yield item
                done, tokens = done + 1, tokens + item[1].thinking_tokens + item[1].answer_tokens
                thinking += item[1].thinking_tokens
                if progress is not None:
                    progress(done, tokens, thinking)
        finally:
            stop.set()
            thread.join(1.0)

    async def _ask(
        self,
        asked: list[Request],
        params: SamplingParams,
        system: str,
        found: queue.Queue[tuple[int, RemoteOutput] | BaseException | None],
        stop: threading.Event,
    ) -> None:
        left = iter(enumerate(asked))

        async def worker(client: Client) -> None:
            for i, request in left:
                if stop.is_set():
                    return
                messages = [{"role": "user", "content": request.prompt}]
                if instruction := request.system or system:
                    messages.insert(0, {"role": "system", "content": instruction})
                completion = await client.chat(messages, max_tokens=self._max_tokens)
                found.put((i, _output(completion, request.params or params)))

        async with Client(self.endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(worker(client))


def _output(completion: Completion, params: SamplingParams) -> RemoteOutput:
    usage = completion.usage
    thinking = usage.reasoning_tokens if usage else 0
    return RemoteOutput(
        thinking=completion.reasoning,
        answer=completion.content.strip(),
        token_ids=(),
        forced=(),
        logprobs=(),
        logprob=0.0,
        thinking_tokens=thinking,
        answer_tokens=max(usage.completion_tokens - thinking, 0) if usage else 0,
        waits=0,
        thinking_end="natural",
        answer_end="length" if completion.finish_reason == "length" else "stop",
        stop_reason=None,
        params=params,
        usage=dataclasses.asdict(usage) if usage else {},
    )
