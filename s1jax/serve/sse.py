"""Responses that end when the client leaves: server-sent events, and plain ones that take long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_Result = TypeVar("_Result")
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # the latter: nginx shall not collect events
_COMMENT = b": keep-alive\n\n"


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete."""


class EventStream(Response):
    """Sends events as they come, and a comment line where none comes for long.

    Proxies and clients cut connections that are silent for a minute; a comment line is not an event for any client.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        keep_alive: float,
        on_end: Callable[[bool], None],
        headers: Mapping[str, str] | None = None,
    ):
        """Takes the events.

        Args:
          events: of the form of server-sent events; what comes at a time is sent as one piece.
          keep_alive: seconds of silence before a comment line.
          on_end: called at the end, in any case, with whether the client got everything.
          headers: more headers.
        """
        super().__init__(None, headers={**_HEADERS, **(headers or {})}, media_type="text/event-stream")
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._events, self._keep_alive, self._on_end = events, keep_alive, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all events, or stops when the client has left."""
        complete = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await until_left(receive, self._send_all(send))
            complete = True
        except (ClientLeft, OSError):
            pass
        finally:
            self._on_end(complete)

    async def _send_all(self, send: Send) -> None:
        iterator = self._events.__aiter__()
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(iterator))
                done, _ = await asyncio.wait({following}, timeout=self._keep_alive)
                if not done:
                    await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
                    continue
                try:
                    data = following.result()
                except StopAsyncIteration:
                    break
                following = None
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if following is not None and not following.done():
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following


async def until_left(receive: Receive, work: Awaitable[_Result]) -> _Result:
    """Awaits `work`, whose request has been read, and cancels it if the client leaves.

    Raises:
      ClientLeft: it left.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for each in (task, watcher):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
