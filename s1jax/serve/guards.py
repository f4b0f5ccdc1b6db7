"""What every request passes before a route sees it: ids, hosts, keys, sizes."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import json
import re
import urllib.parse
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 10_000_000  # of a body
_OPEN = ("/health", "/")  # without a key: a probe has none, and a browser loads the page before it asks for one
_LOCAL = ("localhost",)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Who may ask.

    Attributes:
      keys: API keys; empty: everybody.
      allowed_hosts: names that the Host header may have, beside localhost and IP addresses. A page of another site
        that has its name resolve to this machine (DNS rebinding) is refused by it. `*`: any.
      allowed_origins: sites whose pages may ask, as in `https://chat.example.org`; `*`: any.
    """

    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


class BodyTooLarge(Exception):
    """A body has more than `MOST_BYTES`."""


class Guards:
    """ASGI application around another one."""

    def __init__(self, app: ASGIApp, rules: Rules, refuse: Callable[[str, int, str, str], dict[str, Any]]):
        """Takes the application within.

        Args:
          app: sees only what may pass; finds `request_id` and `key` (the index of the API key) in `scope["state"]`.
          rules: see `Rules`.
          refuse: (path, status, error code, message) -> body of the refusal.
        """
        self._app, self._rules, self._refuse = app, rules, refuse
        self._keys = [key.encode() for key in rules.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or hands on, one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        asked = headers.get(b"x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        origin = headers.get(b"origin", "")
        shared = bool(origin) and ("*" in self._rules.allowed_origins or origin in self._rules.allowed_origins)
        extra = [(b"x-request-id", request_id.encode())]
        if shared:
            extra += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", b"x-request-id, x-s1jax-ignored, retry-after"),
                (b"vary", b"Origin"),
            ]

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "key": 0}
        if shared and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _answer(send_with, 204, None, _PREFLIGHT)
            return
        refusal = self._find_refusal(scope, headers, origin, shared)
        if refusal is not None:
            status, code, message = refusal
            more = [(b"www-authenticate", b"Bearer")] if status == 401 else []
            await _answer(send_with, status, self._refuse(scope["path"], status, code, message), more)
            return
        await self._app(scope, _limited(receive), send_with)

    def _find_refusal(
        self, scope: Scope, headers: dict[bytes, str], origin: str, shared: bool
    ) -> tuple[int, str, str] | None:
        """Returns status, code and message if the request may not pass."""
        host = headers.get(b"host", "")
        if not _is_allowed(host, self._rules.allowed_hosts):
            return 403, "host_not_allowed", f"the host {host!r:.80} is not one of --allowed_hosts."
        if origin and not shared and _host_of(origin) != host:
            return 403, "origin_not_allowed", f"the origin {origin!r:.80} is not one of --allowed_origins."
        if self._keys and scope["path"] not in _OPEN:
            key = _find_key(headers, self._keys)
            if key is None:
                return 401, "invalid_api_key", "no valid API key; send one as Authorization: Bearer KEY."
            scope["state"]["key"] = key
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length[:20]) > MOST_BYTES:
            return 413, "body_too_large", f"the body has {length[:20]} bytes; at most {MOST_BYTES} are read."
        return None


_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id, anthropic-version"),
    (b"access-control-max-age", b"600"),
]


def _host_of(origin: str) -> str:
    """The host of an origin; empty for what is none."""
    try:
        return urllib.parse.urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_allowed(host: str, allowed: Sequence[str]) -> bool:
    if "*" in allowed:
        return True
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in _LOCAL or name in [each.lower() for each in allowed]
    return True


def _find_key(headers: dict[bytes, str], keys: Sequence[bytes]) -> int | None:
    """Returns the index of the API key that a request has; takes equally long whichever it is."""
    scheme, _, given = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        given = headers.get(b"x-api-key", "")  # of Anthropic's clients
    found = None
    for i, key in enumerate(keys):
        if hmac.compare_digest(given.strip().encode("latin-1"), key):
            found = i
    return found


def _limited(receive: Receive) -> Receive:
    """Reads a body up to `MOST_BYTES`, whatever its header says."""
    total = 0

    async def read() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MOST_BYTES:
            raise BodyTooLarge(f"the body has more than {MOST_BYTES} bytes.")
        return message

    return read


async def _answer(
    send: Send, status: int, body: dict[str, Any] | None, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start[body is None :]})
    await send({"type": "http.response.body", "body": data})
