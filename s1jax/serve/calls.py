"""Carries one API call from its body to its reply."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from s1jax.engine.pieces import Piece
from s1jax.engine.sequence import EncodedRequest
from s1jax.errors import UserError
from s1jax.serve import budgets, protocol, reader, sse
from s1jax.serve.guards import MOST_BYTES, BodyTooLarge
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Event, Result, Usage
from s1jax.serve.ticket import Running, Ticket, Unavailable
from s1jax.serve.worker import Worker

_BODY_SECONDS = 60  # for a client to send its body
_LONG_TEXT = 20_000  # bytes of a body whose text is encoded beside the event loop, which would stand still meanwhile
_LEFT = 499  # status in the log for a client that left, as nginx has it

Log = Callable[[Mapping[str, Any]], None]


class StreamWriter(Protocol):
    """Writes the events of a streamed reply."""

    done: bytes

    def begin(self) -> list[Event]:
        """The events before the first piece."""

    def piece(self, index: int, piece: Piece) -> list[Event]:
        """The events of a piece of a choice."""

    def end(self, results: Sequence[Result]) -> list[Event]:
        """The events after the last piece."""

    def fail(self, error: ApiError) -> list[Event]:
        """The events of an error."""


class Api(Protocol):
    """One of the modules `chat`, `completions`, `responses`, `anthropic`."""

    Stream: Callable[[Call, Count], StreamWriter]

    def parse(self, body: Mapping[str, Any], defaults: Defaults) -> Call:
        """Reads the body of a request."""

    def whole(self, call: Call, results: Sequence[Result], count: Count = ...) -> dict[str, Any]:
        """Writes a reply."""

    def fail(self, error: ApiError) -> dict[str, Any]:
        """Writes an error."""


@dataclasses.dataclass(frozen=True)
class _Live:
    """A call whose answer is on its way."""

    call: Call
    ticket: Ticket
    encoded: list[EncodedRequest]
    key: int


class Calls:
    """Answers calls of all APIs with one worker.

    Attributes:
      worker: that samples.
      defaults: of requests.
    """

    def __init__(
        self,
        worker: Worker,
        defaults: Defaults,
        *,
        keep_alive: float = 5.0,
        count: Count = Usage.of,
        log: Log | None = None,
    ):
        """Takes what answers need.

        Args:
          worker: that samples.
          defaults: of requests.
          keep_alive: seconds of silence in a stream before a comment line.
          count: counts tokens and money.
          log: called once for each call, without its text.
        """
        self.worker, self.defaults = worker, defaults
        self._keep_alive, self._count, self._log = keep_alive, count, log
        self._live: dict[str, _Live] = {}

    async def answer(self, api: Api, request: Request) -> Response:
        """Answers one request."""
        start, call = time.monotonic(), None
        try:
            body = await read_body(request)
            call = api.parse(reader.loads(body), self.defaults)
            live = await self._submit(call, request, len(body))
            headers = {"x-s1jax-ignored": ",".join(call.ignored)} if call.ignored else {}
            if call.stream:
                return self._stream(api, live, request, start, headers)
            try:
                outputs = await sse.until_left(request.receive, live.ticket.outputs())
            finally:
                self._end(live)
            self._note(request, start, 200, call, live)
            results = [self._result(live, i, output) for i, output in enumerate(outputs)]
            return JSONResponse(api.whole(call, results, self._count), headers=headers)
        except sse.ClientLeft:
            self._note(request, start, _LEFT, call)
            return Response(status_code=_LEFT)
        except (ApiError, UserError, Unavailable, BodyTooLarge) as problem:
            error = as_api_error(problem)
            self._note(request, start, error.status, call)
            return refusal(api, error, problem)

    async def _submit(self, call: Call, request: Request, num_bytes: int) -> _Live:
        """Encodes a call and hands it to the worker.

        Raises:
          ApiError, UserError: it cannot be answered.
          Unavailable: not now.
        """
        if self.worker.engine is None or self.worker.state != "ready":
            self.worker.check()
        encoded = await asyncio.to_thread(self._encode, call) if num_bytes > _LONG_TEXT else self._encode(call)
        submitting = self.worker.submit(encoded, samples=call.params.n, streams=call.stream)
        ticket = await sse.until_left(request.receive, submitting)
        live = _Live(call, ticket, encoded, request.state.key)
        self._live[call.id] = live
        return live

    def _encode(self, call: Call) -> list[EncodedRequest]:
        engine = self.worker.engine
        assert engine is not None and engine.model is not None
        encoder, found = engine.encoder, []
        for request in call.requests(engine.model.tokenizer.encode):
            for each in encoder.encode(request, self.defaults.params, request.name):
                params = budgets.fit(
                    each.params, call.max_completion_tokens, len(each.prompt), encoder.delimiters, self.worker.length
                )
                found.append(dataclasses.replace(each, params=params))
        return found

    def _stream(
        self, api: Api, live: _Live, request: Request, start: float, headers: Mapping[str, str]
    ) -> sse.EventStream:
        writer = api.Stream(live.call, self._count)
        status = 200

        async def events() -> AsyncIterator[bytes]:
            nonlocal status
            yield protocol.sse(writer.begin())
            try:
                async for batch in live.ticket:
                    found = [event for index, piece in batch for event in writer.piece(index, piece)]
                    if found:
                        yield protocol.sse(found)
                outputs = await live.ticket.outputs()
            except Unavailable as problem:
                error = as_api_error(problem)
                status = error.status
                yield protocol.sse(writer.fail(error)) + writer.done
                return
            results = [self._result(live, i, output) for i, output in enumerate(outputs)]
            yield protocol.sse(writer.end(results)) + writer.done

        def ended(complete: bool) -> None:
            self._end(live)
            self._note(request, start, status if complete else _LEFT, live.call, live)

        return sse.EventStream(events(), keep_alive=self._keep_alive, on_end=ended, headers=headers)

    def _end(self, live: _Live) -> None:
        live.ticket.cancel()  # does nothing to a finished one
        self._live.pop(live.call.id, None)

    def _result(self, live: _Live, index: int, output: Any) -> Result:
        engine = self.worker.engine
        assert engine is not None and engine.model is not None
        call, running = live.call, live.ticket.sequences[index]
        return Result(
            output,
            prompt_ids=len(running.request.prompt),
            delimiters=engine.encoder.delimiters,
            device_seconds=running.device_seconds,
            token_texts=tuple(engine.encoder.decode([i]) for i in output.token_ids) if call.logprobs else (),
        )

    def _note(self, request: Request, start: float, status: int, call: Call | None, live: _Live | None = None) -> None:
        """Adds a line to the log: numbers and names only, no text of anybody."""
        if self._log is None:
            return
        entry: dict[str, Any] = {
            "id": request.state.request_id,
            "route": request.url.path,
            "status": status,
            "seconds": round(time.monotonic() - start, 4),
        }
        if call is not None:
            entry |= {"call": call.id, "model": call.model, "stream": call.stream, "n": call.params.n}
        if live is not None:
            entry |= {"key": live.key, **_numbers(live.ticket.sequences)}
        self._log(entry)


def _numbers(sequences: Sequence[Running]) -> dict[str, Any]:
    """What the log says of the sequences of a call."""
    first = sequences[0].times
    samples = [each.sample for each in sequences if each.sample is not None]

    def since(moment: float | None) -> float | None:
        return None if moment is None else round(moment - first.submitted, 4)

    return {
        "prompt_tokens": sequences[0].prompt_tokens,
        "tokens": sum(len(sample.ids) for sample in samples),
        "thinking_tokens": sum(sample.thinking_tokens for sample in samples),
        "waits": sum(sample.waits for sample in samples),
        "thinking_end": [sample.thinking_end for sample in samples],
        "answer_end": [sample.answer_end for sample in samples],
        "queue_seconds": since(first.admitted),
        "first_token_seconds": since(first.first_token),
        "first_answer_token_seconds": since(first.first_answer_token),
    }


async def read_body(request: Request) -> bytes:
    """Returns the body of a request.

    Raises:
      ApiError: 408, the client did not send it in time.
      BodyTooLarge: it is longer than is read.
      ClientLeft: it left meanwhile.
    """
    from starlette.requests import ClientDisconnect

    try:
        return await asyncio.wait_for(request.body(), _BODY_SECONDS)
    except TimeoutError:
        raise ApiError(f"the body did not arrive within {_BODY_SECONDS} s; send it again.", status=408) from None
    except ClientDisconnect:
        raise sse.ClientLeft from None


def as_api_error(problem: Exception) -> ApiError:
    """Returns what a client is answered."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, Unavailable):
        return ApiError(str(problem), None, problem.reason, "unavailable_error", 503)
    if isinstance(problem, BodyTooLarge):
        return ApiError(f"the body has more than {MOST_BYTES} bytes.", None, "body_too_large", status=413)
    return ApiError(str(problem))


def refusal(api: Api, error: ApiError, problem: Exception | None = None) -> JSONResponse:
    """Returns the response of an error in the form of an API."""
    headers = {}
    if isinstance(problem, Unavailable) and problem.retry_after:
        headers["retry-after"] = str(problem.retry_after)
    return JSONResponse(api.fail(error), error.status, headers)
