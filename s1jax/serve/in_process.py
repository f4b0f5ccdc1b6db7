"""Answers chats by an engine of this process, as `/v1/chat/completions` does, without HTTP: `EngineTeacher`."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.checkpoint import digests, store
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from s1jax.remote import reply
from s1jax.remote.client import RemoteError
from s1jax.remote.reply import Completion
from s1jax.serve import chat, protocol, sequences
from s1jax.serve.protocol import ApiError, Defaults
from s1jax.serve.reader import Reader
from s1jax.serve.ticket import Unavailable
from s1jax.serve.worker import Limits, Worker

_ENDING_SECONDS = 60  # for the step that runs when the teacher is closed


class EngineTeacher:
    """A teacher (`s1jax.distillation.teacher.Teacher`) that samples with an engine.

        teacher = s1jax.EngineTeacher.of("runs/s1", slots=16)
        s1jax.distil("questions.jsonl", "traces", teacher)

    A request has the fields of the server, so that the same request gives the same tokens here and there: budgets under
    all their names, waits, seeds. The engine runs in a thread of its own, which loads it at the first request. A
    teacher is for one call of `s1jax.distil`, which closes it.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        model: str,
        address: str,
        *,
        params: SamplingParams | None = None,
        cache_tokens: int = 0,
    ):
        """Starts nothing.

        Args:
          make: loads the engine; called in its thread.
          model: name of the model in the answers.
          address: names the weights, for the keys of requests.
          params: of requests that are silent; by default those of the server.
          cache_tokens: tokens of the KV cache, for all sequences; 0: what fits.
        """
        self._model, self._address = model, address
        self._params = params or SamplingParams(temperature=1.0)
        # The caller says how many requests there are at one time; none is turned away here.
        self._worker = Worker(make, Limits(cache_tokens, waiting=2**31, waiting_tokens=2**62))
        self._started = False

    @classmethod
    def of(
        cls,
        checkpoint: str,
        *,
        model: str = "",
        params: SamplingParams | None = None,
        cache_tokens: int = 0,
        make: Callable[[pathlib.Path], Engine] | None = None,
        **options: Any,
    ) -> EngineTeacher:
        """Returns the teacher that a checkpoint is.

        Args:
          checkpoint: path of a checkpoint or training workdir, or `package:NAME`.
          model: name of the model in the answers; empty: the last part of the path.
          params: as for the class.
          cache_tokens: as for the class.
          make: loads the engine from the checkpoint's folder; by default `Engine` with `options`.
          options: of `s1jax.Engine`, such as `slots` and `cache_length`.

        Raises:
          UserError: there is no such checkpoint.
        """
        # Quantised weights are another teacher; the dtype of activations changes the rounding alone.
        dtypes = {name: options.get(name, "") for name in ("weight_dtype", "cache_dtype")}
        quantised = "".join(f",{name}={dtype}" for name, dtype in dtypes.items() if dtype.startswith("int"))
        address = f"engine:{store.using(checkpoint, digests.fingerprint)}{quantised}"
        name = model or checkpoint.rstrip("/").rpartition("/")[2].removeprefix("package:")
        load = make or (lambda folder: Engine(folder, **options))
        return cls(lambda: store.using(checkpoint, load), name, address, params=params, cache_tokens=cache_tokens)

    @property
    def address(self) -> str:
        """Names the weights."""
        return self._address

    @property
    def model(self) -> str:
        """Name of the model in the answers."""
        return self._model

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 0, more: Mapping[str, Any] | None = None
    ) -> Completion:
        """Samples one completion; see `s1jax.distillation.teacher.Teacher.chat`.

        Raises:
          RemoteError: a field is invalid or has no effect, or the prompt is too long.
          UserError: the engine cannot be loaded.
          BaseException: what ended the engine.
        """
        begun = time.monotonic()
        engine = await self._engine()
        limit = {"max_completion_tokens": max_tokens} if max_tokens else {}
        body = {**limit, **(more or {}), "messages": [dict(message) for message in messages]}
        assert engine.model is not None  # of a checkpoint
        defaults = Defaults(self._model, engine.model.config.context_length, self._params)
        try:
            call = chat.read(Reader(body), defaults)
            if call.ignored:
                raise ApiError(f"{', '.join(call.ignored)} would have no effect; leave it out.", call.ignored[0])
            encoded = sequences.encode(engine, call, self._params, self._worker.length)
            ticket = await self._worker.submit(encoded, streams=False)
        except (ApiError, UserError) as problem:
            raise _refused(problem) from None
        try:
            (output,) = await ticket.outputs()
        except Unavailable as problem:
            raise self._worker.error or RemoteError("server", str(problem)) from None
        finally:
            ticket.cancel()  # does nothing to a finished one
        results = [sequences.result(engine, call, ticket.sequences[0], output)]
        found = reply.parse(chat.whole(call, results, protocol.Usage.of), {})
        return dataclasses.replace(found, seconds=time.monotonic() - begun)

    async def close(self) -> None:
        """Ends the thread of the engine after the step that runs."""
        if self._started:
            self._worker.stop()
            await asyncio.to_thread(self._worker.join, _ENDING_SECONDS)

    async def _engine(self) -> Engine:
        """Returns the engine once it is compiled."""
        if not self._started:
            self._started = True
            self._worker.start()
        await self._worker.ready()
        if self._worker.engine is None or self._worker.state != "ready":
            raise self._worker.error or RemoteError("server", "the engine has stopped")
        return self._worker.engine


def _refused(problem: ApiError | UserError) -> RemoteError:
    """Returns the error of a request that the server would answer with 400."""
    if isinstance(problem, UserError):
        return RemoteError("request", str(problem), 400)
    error = RemoteError("request", problem.message, problem.status)
    error.code = problem.code or ""
    return error
