"""The routes of the server: a Starlette application around a worker."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from s1jax import __version__
from s1jax.checkpoint.store import Metadata
from s1jax.config.sampling import SamplingParams
from s1jax.errors import UserError
from s1jax.io import readers
from s1jax.serve import anthropic, chat, completions, openapi, reader, responses, sse
from s1jax.serve import calls as calls_lib
from s1jax.serve.calls import Api, Calls, Log
from s1jax.serve.guards import BodyTooLarge, Guards, Rules
from s1jax.serve.handoff import Handoff
from s1jax.serve.handoff_calls import HandoffCalls
from s1jax.serve.metrics import CONTENT_TYPE, Metrics
from s1jax.serve.page import Page
from s1jax.serve.protocol import ApiError, Defaults, Usage
from s1jax.serve.protocol import Count as Count
from s1jax.serve.ticket import Unavailable
from s1jax.serve.worker import Worker
from s1jax.text import conversation

APIS: dict[str, Any] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completions,
    "/v1/responses": responses,
    "/v1/messages": anthropic,
}
_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
    500: "server_error",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the operator of a server chooses.

    Attributes:
      model: name of the model in the APIs.
      params: sampling parameters of requests that are silent.
      keep_alive: seconds of silence in a stream before a comment line.
      curve: of the checkpoint's own evaluation, see `s1jax.serve.curve`; None: there is none.
      adapters: names of the engine's adapters, which are models of their own in the APIs.
    """

    model: str
    params: SamplingParams = dataclasses.field(default_factory=lambda: SamplingParams(temperature=1.0))
    keep_alive: float = 5.0
    curve: Mapping[str, Any] | None = None
    adapters: tuple[str, ...] = ()


def make(
    worker: Worker,
    about: Metadata,
    settings: Settings,
    rules: Rules | None = None,
    log: Log | None = None,
    count: Count = Usage.of,
    handoff: Handoff | None = None,
) -> ASGIApp:
    """Returns the application.

    Args:
      worker: started by the caller, in the event loop of the application.
      about: the checkpoint that it serves.
      settings: see `Settings`.
      rules: who may ask; by default everybody who reaches the server by an IP address or as localhost.
      log: called for each call, see `Calls`.
      count: counts tokens and money.
      handoff: to another model; None: there is none.
    """
    defaults = Defaults(
        settings.model, about.config.context_length, settings.params, adapters=settings.adapters,
        tools=conversation.has_tools(about.chat), prompt_efforts=about.chat.efforts,
    )  # fmt: skip
    routes = _Routes(worker, about, settings, defaults, log, count, handoff)
    starlette = Starlette(
        routes=routes.all(),
        exception_handlers={HTTPException: _not_found, Exception: _crashed},  # type: ignore[dict-item]
    )
    return Guards(starlette, rules or Rules(), _refuse)


class _Routes:
    """The functions of the routes."""

    def __init__(
        self,
        worker: Worker,
        about: Metadata,
        settings: Settings,
        defaults: Defaults,
        log: Log | None,
        count: Count,
        handoff: Handoff | None,
    ):
        self._worker, self._about, self._settings, self._defaults = worker, about, settings, defaults
        self._metrics = Metrics(worker)
        worker.observer = self._metrics
        self._handoffs = HandoffCalls(handoff, self._metrics.handoff)
        self._calls = Calls(
            worker, defaults, keep_alive=settings.keep_alive, count=count, log=log, handoffs=self._handoffs
        )
        self._created = int(time.time())

    def all(self) -> list[Route]:
        """The routes of the application."""
        get, post = ["GET"], ["POST"]
        return [
            *(Route(path, self._api(api), methods=post) for path, api in APIS.items()),
            Route("/v1/chat/completions/control", _json(self._calls.control), methods=post),
            Route("/v1/handoffs", _json(self._accept), methods=post),
            Route("/v1/models", self._models, methods=get),
            Route("/v1/models/{name:path}", self._model, methods=get),
            Route("/v1/curve", self._curve, methods=get),
            Route("/tokenizer_info", self._tokenizer_info, methods=get),
            Route("/tokenize", _json(self._tokenize), methods=post),
            Route("/detokenize", _json(self._detokenize), methods=post),
            Route("/health", self._health, methods=get),
            Route("/metrics", self._get_metrics, methods=get),
            Route("/openapi.json", self._document, methods=get),
            Route("/version", self._version, methods=get),
            Route("/", Page().__call__, methods=get),
        ]

    def _api(self, api: Api) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await self._calls.answer(api, request)

        return answer

    async def _accept(self, body: Mapping[str, Any], key: int) -> dict[str, Any]:
        """Makes a hand-off that was offered."""
        fields = reader.Reader(body)
        offer = fields.text("offer")
        if not offer:
            reader.refuse("offer", "is missing; write the id of handoff.offer in a reply.")
        fields.rest()
        return await self._handoffs.accept(offer, f"key{key}")

    async def _health(self, request: Request) -> Response:
        state = self._worker.state
        if state == "ready":
            return JSONResponse({"status": "ok"})
        message = "Loading model" if state == "loading" else f"The server is {state}"
        return JSONResponse({"error": {"code": 503, "message": message, "type": "unavailable_error"}}, 503)

    async def _get_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def _document(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self._defaults, __version__))

    def _card(self, name: str) -> dict[str, Any]:
        model = self._settings.model
        return {
            "id": name, "object": "model", "created": self._created, "owned_by": "s1jax", "root": name,
            "parent": None if name == model else model, "max_model_len": self._length(),
        }  # fmt: skip

    async def _models(self, request: Request) -> Response:
        names = (self._settings.model, *self._settings.adapters)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in names]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (self._settings.model, *self._settings.adapters):
            message = f"the model {name!r:.80} is not served here; {self._settings.model!r} is."
            return calls_lib.refusal(chat, ApiError(message, "model", "model_not_found", "not_found_error", 404))  # type: ignore[arg-type]
        return JSONResponse(self._card(name))

    async def _curve(self, request: Request) -> Response:
        if self._settings.curve is None:
            message = "this checkpoint has no evaluation; launch.evaluate --out with its folder makes one."
            return calls_lib.refusal(chat, ApiError(message, None, "no_curve", "not_found_error", 404))  # type: ignore[arg-type]
        return JSONResponse(self._settings.curve)

    async def _tokenizer_info(self, request: Request) -> Response:
        """What lm-evaluation-harness asks for: the tokens that its `local-completions` puts before and after texts."""
        tokenizer = self._about.tokenizer
        eos, pad = ("".join(tokenizer.tokens([] if i is None else [i])) for i in (tokenizer.eos_id, tokenizer.pad_id))
        return JSONResponse({
            "tokenizer_class": "s1jax", "bos_token": None, "eos_token": eos or None, "pad_token": pad or None,
            "vocab_size": self._about.config.vocab_size, "model_max_length": self._length(),
        })  # fmt: skip

    def _length(self) -> int:
        """The most tokens of a sequence."""
        return self._worker.length or self._defaults.context_length

    def _tokenize(self, body: Mapping[str, Any], key: int) -> dict[str, Any]:
        fields = reader.Reader(body)
        text = fields.text("prompt")
        if text is None:
            reader.refuse("prompt", "is missing; write a string.")
        fields.text("model")
        texts = fields.flag("return_token_strs")
        fields.unused("add_special_tokens")  # no token is ever added
        fields.rest()
        readers.check_length(text, "the request", "prompt")
        ids = self._about.tokenizer.encode(text)
        return {
            "count": len(ids),
            "max_model_len": self._length(),
            "tokens": ids,
            "token_strs": self._about.tokenizer.tokens(ids) if texts else None,
        }

    def _detokenize(self, body: Mapping[str, Any], key: int) -> dict[str, Any]:
        fields = reader.Reader(body)
        ids = fields.items("tokens")
        if ids is None:
            reader.refuse("tokens", "is missing; write a list of token ids.")
        fields.text("model")
        fields.rest()
        most = self._about.config.vocab_size - 1
        return {
            "prompt": self._about.tokenizer.decode(
                [reader.whole(i, f"tokens[{n}]", 0, most) for n, i in enumerate(ids)]
            )
        }


def _json(function: Callable[[Mapping[str, Any], int], Any]) -> Callable[[Request], Awaitable[Response]]:
    """Returns the route of a function from one JSON object and the API key's index to another object."""

    async def answer(request: Request) -> Response:
        try:
            data = await calls_lib.read_body(request)
            body = await calls_lib.beside(len(data), reader.loads, data)
            found = await calls_lib.beside(len(data), function, body, request.state.key)
            if inspect.isawaitable(found):
                found = await sse.until_left(request.receive, found)
            return JSONResponse(found)
        except (ApiError, UserError, Unavailable, BodyTooLarge) as problem:
            return calls_lib.refusal(chat, problem)  # type: ignore[arg-type]
        except sse.ClientLeft:
            return Response(status_code=calls_lib.LEFT)

    return answer


def _refuse(path: str, status: int, code: str, message: str) -> dict[str, Any]:
    """The body of a refusal, in the form of the API of a path."""
    return APIS.get(path, APIS["/v1/chat/completions"]).fail(
        ApiError(message, None, code, _TYPES.get(status, "invalid_request_error"), status)
    )


async def _not_found(request: Request, error: HTTPException) -> Response:
    """404 and 405."""
    problems = {404: "no such route", 405: "the route does not accept this method"}
    message = f"{problems.get(error.status_code, error.detail)}: {request.method} {request.url.path!r:.120}."
    body = _refuse(request.url.path, error.status_code, "not_found", message)
    return JSONResponse(body, error.status_code, error.headers)


async def _crashed(request: Request, error: Exception) -> Response:
    """500: an error of ours; Starlette raises it again, for the log."""
    return JSONResponse(_refuse(request.url.path, 500, "internal_error", "the server has failed; see its log."), 500)
