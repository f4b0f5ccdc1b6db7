"""Carries one API call from its body to its reply."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from s1jax.engine import resume
from s1jax.engine.pieces import Piece
from s1jax.engine.request import Output
from s1jax.engine.request import Request as EngineRequest
from s1jax.engine.sequence import EncodedRequest, Sample
from s1jax.errors import UserError
from s1jax.serve import protocol, reader, scoring, sequences, sse
from s1jax.serve.guards import BodyTooLarge
from s1jax.serve.handoff_calls import HandoffCalls
from s1jax.serve.protocol import ApiError, Call, Count, Defaults, Event, Result, Usage
from s1jax.serve.ticket import Running, Ticket, Unavailable
from s1jax.serve.worker import Worker

_BODY_SECONDS = 60  # for a client to send its body
_LONG_TEXT = 20_000  # bytes of a body that is read beside the event loop, which would stand still meanwhile
_KEPT = 256  # finished replies whose thinking can go on
_KEPT_SECONDS = 3600
LEFT = 499  # status in the log for a client that left, as nginx has it

_Found = TypeVar("_Found")
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

    def read(self, reader: reader.Reader, defaults: Defaults) -> Call:
        """Reads the body of a request."""

    def whole(self, call: Call, results: Sequence[Result], count: Count = ...) -> dict[str, Any]:
        """Writes a reply."""

    def fail(self, error: ApiError) -> dict[str, Any]:
        """Writes an error."""


@dataclasses.dataclass(frozen=True)
class _Live:
    """A call whose answer is on its way, or finished."""

    call: Call
    ticket: Ticket
    encoded: list[EncodedRequest]
    key: int


@dataclasses.dataclass(frozen=True)
class _Finished:
    """What is kept of a finished call, so that its thinking can go on: no text, because many are kept."""

    key: int
    encoded: EncodedRequest
    sample: Sample
    tools: tuple[Mapping[str, Any], ...]
    one_tool_call: bool
    at: float


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
        handoffs: HandoffCalls | None = None,
    ):
        """Takes what answers need.

        Args:
          worker: that samples.
          defaults: of requests.
          keep_alive: seconds of silence in a stream before a comment line.
          count: counts tokens and money.
          log: called once for each call, without its text.
          handoffs: decides which answers another model gives; by default none.
        """
        self.worker, self.defaults = worker, defaults
        self._keep_alive, self._count, self._log = keep_alive, count, log
        self._handoffs = handoffs or HandoffCalls(None)
        self._live: dict[str, _Live] = {}
        self._finished: collections.OrderedDict[str, _Finished] = collections.OrderedDict()
        self._scoring = asyncio.Lock()

    async def answer(self, api: Api, request: Request) -> Response:
        """Answers one request."""
        start, call = time.monotonic(), None
        try:
            body = await read_body(request)
            call = await beside(len(body), lambda: api.read(reader.Reader(reader.loads(body)), self.defaults))
            self._handoffs.check(call)
            if call.only_prompt:
                if call.model in self.defaults.adapters:
                    raise ApiError(
                        f"the log-probabilities of a prompt are computed without adapters; write"
                        f" {self.defaults.model!r} as the model, or ask for an answer.",
                        "model",
                    )
                results = await sse.until_left(request.receive, self._scored(call))
                self._note(request, start, 200, call)
                return JSONResponse(api.whole(call, results, self._count), headers=_ignored(call))
            live = await self._submit(call, request, len(body))
            if call.stream:
                return self._stream(api, live, request, start)
            try:
                outputs = await sse.until_left(request.receive, live.ticket.outputs())
            finally:
                self._end(live)
            results = [self._result(live, i, output) for i, output in enumerate(outputs)]
            settling = self._handoffs.settle(call, f"key{live.key}", results)
            results = await sse.until_left(request.receive, settling)
            self._note(request, start, 200, call, live, results)
            return JSONResponse(api.whole(call, results, self._count), headers=_ignored(call))
        except sse.ClientLeft:
            self._note(request, start, LEFT, call)
            return Response(status_code=LEFT)
        except (ApiError, UserError, Unavailable, BodyTooLarge) as problem:
            response = refusal(api, problem)
            self._note(request, start, response.status_code, call)
            return response

    async def control(self, body: Mapping[str, Any], key: int) -> dict[str, Any]:
        """Acts on a call whose answer is on its way: `{"id": "chatcmpl-...", "action": "reasoning_end"}`.

        Raises:
          ApiError: 400, a field is invalid; 404, this API key has no running request with that id.
        """
        fields = reader.Reader(body)
        call_id = fields.text("id")
        if not call_id:
            reader.refuse("id", "is missing; write the id of a reply that is on its way.")
        if fields.word("action", ("reasoning_end",)) is None:
            reader.refuse("action", "is missing; write reasoning_end.")
        fields.rest()
        live = self._live.get(call_id)
        if live is None or live.key != key:
            raise ApiError(f"no reply {call_id:.80} is on its way.", "id", "reply_not_found", "not_found_error", 404)
        return {"id": call_id, "action": "reasoning_end", "ended": await self.worker.end_thinking(live.ticket)}

    async def _submit(self, call: Call, request: Request, num_bytes: int) -> _Live:
        """Encodes a call and hands it to the worker.

        Raises:
          ApiError, UserError: it cannot be answered.
          Unavailable: not now.
        """
        self.worker.check()
        key: int = request.state.key
        self._forget()
        before = self._finished.get(call.think_longer) if call.think_longer else None
        if call.think_longer and (before is None or before.key != key):
            message = f"no finished reply {call.think_longer!r:.80} is kept here; ask again from the beginning."
            raise ApiError(message, "think_longer.id", "reply_not_found", "not_found_error", 404)
        if before is not None:
            call = dataclasses.replace(call, tools=before.tools, one_tool_call=before.one_tool_call)
        encoded = await beside(num_bytes, self._encode, call, before)
        samples = 1 if before else call.params.n
        submitting = self.worker.submit(
            encoded, samples=samples, streams=call.stream, priority=call.priority, salt=f"{key} {call.salt}".encode()
        )
        ticket = await sse.until_left(request.receive, submitting)
        live = _Live(call, ticket, encoded, key)
        self._live[call.id] = live
        return live

    async def _scored(self, call: Call) -> list[Result]:
        """Scores the prompts of a call, in a thread: the streams go on meanwhile, also where it compiles."""
        self.worker.check()
        engine = self.worker.engine
        assert engine is not None
        async with self._scoring:
            return await asyncio.to_thread(scoring.results, engine, call)

    def _encode(self, call: Call, before: _Finished | None) -> list[EncodedRequest]:
        """Returns the sequences of a call; `before`: the reply whose thinking it goes on with."""
        engine = self.worker.engine
        assert engine is not None
        if before is not None:
            sequences.check_sizes(call, self.worker.length)
            return [self._reopened(call, before)]
        return sequences.encode(engine, call, self.defaults.params, self.worker.length)

    def _reopened(self, call: Call, before: _Finished) -> EncodedRequest:
        """Returns the request that goes on with the thinking of the first choice of a finished reply."""
        engine = self.worker.engine
        assert engine is not None
        earlier, sample = before.encoded, before.sample
        given = {name: value for name, value in call.given.items() if name != "n"}
        try:
            params = dataclasses.replace(earlier.params, **given)
        except UserError as error:
            raise ApiError(str(error)) from None
        asked = EngineRequest(prompt_ids=earlier.prompt, params=params, name="the reply", adapter=earlier.adapter)
        encoded = engine.encoder.encode_one(asked, params)
        fitted = sequences.fitted(engine, encoded, call, self.worker.length)
        encoded = dataclasses.replace(encoded, params=earlier.params)
        return resume.reopened(encoded, sample, fitted, engine.encoder.delimiters)

    def _stream(self, api: Api, live: _Live, request: Request, start: float) -> sse.EventStream:
        writer = api.Stream(live.call, self._count)
        status, results = 200, list[Result]()
        holds = self._handoffs.holds(live.call)

        async def events() -> AsyncIterator[bytes]:
            nonlocal status, results
            held: list[tuple[int, Piece]] = []
            yield protocol.sse(writer.begin())
            try:
                async for batch in live.ticket:
                    if holds:  # nothing of an answer is sent that another may replace
                        held += [(index, piece) for index, piece in batch if piece.part == "answer"]
                        batch = [(index, piece) for index, piece in batch if piece.part != "answer"]
                    found = [event for index, piece in batch for event in writer.piece(index, piece)]
                    if found and live.call.running_usage:
                        usage = self._count(live.call, self._so_far(live)).openai()
                        found = [(name, {**data, "usage": usage}) for name, data in found]
                    if found:
                        yield protocol.sse(found)
                outputs = await live.ticket.outputs()
            except Unavailable as problem:
                error = as_api_error(problem)
                status = error.status
                yield protocol.sse(writer.fail(error)) + writer.done
                return
            local = [self._result(live, i, output) for i, output in enumerate(outputs)]
            results = await self._handoffs.settle(live.call, f"key{live.key}", local)
            if any(result.model for result in results):
                held = [(i, Piece("answer", each.output.answer, (), False)) for i, each in enumerate(results)]
            last = [event for index, piece in held for event in writer.piece(index, piece)]
            yield protocol.sse([*last, *writer.end(results)]) + writer.done

        def ended(complete: bool) -> None:
            self._end(live)
            self._note(request, start, status if complete else LEFT, live.call, live, results)

        return sse.EventStream(events(), keep_alive=self._keep_alive, on_end=ended, headers=_ignored(live.call))

    def _end(self, live: _Live) -> None:
        live.ticket.cancel()  # does nothing to a finished one
        self._live.pop(live.call.id, None)
        first, call = live.ticket.sequences[0], live.call
        if call.api == "chat" and first.output is not None and first.sample is not None:
            self._finished[call.id] = _Finished(
                live.key, live.encoded[0], first.sample, call.tools, call.one_tool_call, time.monotonic()
            )
        self._forget()

    def _forget(self) -> None:
        """Drops finished replies that are too many or too old."""
        oldest = time.monotonic() - _KEPT_SECONDS
        while self._finished:
            first = next(iter(self._finished.values()))
            if len(self._finished) <= _KEPT and first.at > oldest:
                break
            self._finished.popitem(last=False)

    def _so_far(self, live: _Live) -> list[Result]:
        """Returns results that have the counts so far, without texts."""
        engine = self.worker.engine
        assert engine is not None
        found = []
        for each in live.ticket.sequences:
            sample, output = each.sample, each.output or protocol.empty_output(each.request.params)
            if sample is not None and each.output is None:
                ids = tuple(sample.ids.tolist())
                output = dataclasses.replace(output, token_ids=ids, thinking_tokens=sample.thinking_tokens)
            cached = sample.cached_tokens if sample is not None else 0
            prompt, delimiters = len(each.request.prompt), engine.encoder.delimiters
            found.append(Result(output, prompt, delimiters, cached, each.device_seconds))
        return found

    def _result(self, live: _Live, index: int, output: Output) -> Result:
        engine = self.worker.engine
        assert engine is not None
        return sequences.result(engine, live.call, live.ticket.sequences[index], output)

    def _note(
        self,
        request: Request,
        start: float,
        status: int,
        call: Call | None,
        live: _Live | None = None,
        results: Sequence[Result] = (),
    ) -> None:
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
        for result in results:
            if result.handoff:
                entry |= {"handoff": result.handoff["reason"], "handoff_cost": result.handoff["cost"]}
        self._log(entry)


def _ignored(call: Call) -> dict[str, str]:
    """The header that lists accepted fields without an effect."""
    return {"x-s1jax-ignored": ",".join(call.ignored)} if call.ignored else {}


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


async def beside(num_bytes: int, function: Callable[..., _Found], *arguments: Any) -> _Found:
    """Calls a function, in a thread if what it reads is long: the streams go on meanwhile."""
    return await asyncio.to_thread(function, *arguments) if num_bytes > _LONG_TEXT else function(*arguments)


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
        return ApiError(str(problem), None, "body_too_large", status=413)
    return ApiError(str(problem))


def refusal(api: Api, problem: Exception) -> JSONResponse:
    """Returns the response of an error in the form of an API."""
    error, headers = as_api_error(problem), {}
    if isinstance(problem, Unavailable) and problem.retry_after:
        headers["retry-after"] = str(problem.retry_after)
    return JSONResponse(api.fail(error), error.status, headers)
