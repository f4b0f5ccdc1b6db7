"""An asynchronous client of OpenAI-compatible chat endpoints.

client = Client(Endpoint("https://api.example.com/v1", "big-model", key=key))
completion = await client.chat([{"role": "user", "content": "What is 12 plus 30?"}], max_tokens=512)
print(completion.content, completion.usage)

This is the only place that repeats requests: once by default, after a time that the endpoint names or a second. An
endpoint that answers 429 pauses all requests of the client. What went wrong is a `RemoteError` with a kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import ipaddress
import json
import math
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from s1jax.errors import MissingPackageError, UserError
from s1jax.remote import reply
from s1jax.remote.reply import Completion
from s1jax.remote.stream import Assembly

if TYPE_CHECKING:
    import aiohttp
    import yarl

# key: the endpoint refuses the key. quota: the account has no money left. busy: too many requests, or overloaded.
# request: the endpoint refuses the request. server: it failed. answer: it sent something else than a completion.
Kind = Literal["key", "quota", "busy", "timeout", "connection", "request", "server", "answer"]
_AGAIN = ("busy", "timeout", "connection", "server")
_MOST_BYTES = 16 << 20  # of a response
_WAIT = 1.0  # seconds before a request is repeated, where the endpoint names none
_MOST_STREAMED = 256 << 20  # a token takes some hundred bytes
_GATEWAY = (408, 504, 524)  # somebody on the way lost patience: the model may have answered, and be billed
_CONNECT = 30.0  # seconds that a connection may take, of those of an attempt


class RemoteError(Exception):
    """A request that got no answer.

    Attributes:
      kind: what went wrong, see `Kind`.
      status: HTTP status; 0 where there was no response.
      retry_after: seconds after which the endpoint may answer again, in its own words; None where it does not say.
      code: of the error in the endpoint's words, such as `context_length_exceeded`; may be empty.
      attempts: requests that were sent.
      lost: those of them that may be billed although their answer never arrived.
    """

    def __init__(self, kind: Kind, message: str, status: int = 0, retry_after: float | None = None):
        """Takes what the attributes say, and a sentence."""
        super().__init__(message)
        self.kind, self.status, self.retry_after = kind, status, retry_after
        self.code = ""
        self.attempts, self.lost = 0, 0


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
      base_url: such as `https://api.example.com/v1`; `/chat/completions` is added.
      model: in the endpoint's words.
      key: sent as a bearer token; empty: none is sent. It is never part of a message or of `repr`.
      timeout: seconds that one attempt may take, from the connection to the last byte.
      retries: how often a request is repeated that found the endpoint busy, broken or gone.
      longest_wait: seconds; where the endpoint wants a longer pause, the request fails at once.
      body: more fields of every request, for example `{"provider": {"data_collection": "deny"}}`.
      name: stands for the base URL where requests are remembered, so that a server may move; empty: the URL.
      limit_field: name of the field that limits the tokens of a completion. Servers that know only the old name
        `max_tokens` ignore the other one.
      stream: ask for the answer in pieces. Proxies end a connection on which nothing comes for a minute or some.
    """

    base_url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 1
    longest_wait: float = 30.0
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    stream: bool = False

    def __post_init__(self) -> None:
        try:
            url = urllib.parse.urlsplit(self.base_url if isinstance(self.base_url, str) else "")
            _ = url.port
        except ValueError:  # a bracket without its pair, a port that is not one
            url = urllib.parse.urlsplit("")
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise UserError(f"base_url is {self.base_url!r:.200}; give one such as https://api.example.com/v1.")
        if url.username or url.password:
            raise UserError("base_url has a name or a password in it; put the key into an environment variable.")
        if not isinstance(self.model, str) or not self.model:
            raise UserError(f"model is {self.model!r:.80}; name the model that the endpoint is to answer with.")
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise UserError("the key has a space or a character that no HTTP header can hold; set it again.")
        if self.key and url.scheme == "http" and not is_loopback(url.hostname):
            raise UserError(f"base_url {self.base_url} would send the key unencrypted; use https.")
        for name, least in (("timeout", 0.001), ("retries", 0), ("longest_wait", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def chat(
        self, messages: Sequence[Mapping[str, Any]], max_tokens: int = 0, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Returns the body of a chat request; arguments are those of `Client.chat`."""
        limit: dict[str, Any] = {self.limit_field: max_tokens} if max_tokens else {}
        own = {"model": self.model, "messages": list(messages)}
        return {**self.body, **limit, **(more or {}), **own}

    @property
    def host(self) -> str:
        """Name of the machine that requests go to, with its port where the URL has one."""
        return urllib.parse.urlsplit(self.base_url).netloc


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Client:
    """Sends chat requests to one endpoint, from one event loop; any number at a time."""

    def __init__(self, endpoint: Endpoint, *, pauses: bool = True):
        """Makes no connection yet.

        Args:
          endpoint: answers.
          pauses: whether a 429 holds back all requests of this client; False where the caller does that.

        Raises:
          MissingPackageError: aiohttp is not installed.
          UserError: the endpoint's address cannot be read.
        """
        try:
            import aiohttp
        except ModuleNotFoundError:
            raise MissingPackageError("A remote endpoint", "aiohttp", "remote") from None
        self.endpoint, self._pauses = endpoint, pauses
        self._aiohttp = aiohttp
        try:
            self._url = _yarl(endpoint.base_url.rstrip("/") + "/chat/completions")
        except ValueError as error:
            raise UserError(f"base_url {endpoint.base_url!r:.200} cannot be read ({error}); correct it.") from None
        self._proxy = _proxy(endpoint.base_url)
        self._http: aiohttp.ClientSession | None = None
        self._resume_at = 0.0  # by time.monotonic(); nothing is sent before

    @property
    def address(self) -> str:
        """The endpoint's name, or its base URL."""
        return self.endpoint.name or self.endpoint.base_url

    @property
    def model(self) -> str:
        """The model that is asked, in the endpoint's words."""
        return self.endpoint.model

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 0, more: Mapping[str, Any] | None = None
    ) -> Completion:
        """Asks for one completion.

        Args:
          messages: objects with `role` and `content`.
          max_tokens: of the completion, thinking included, sent as `Endpoint.limit_field`; 0 sends none.
          more: further fields of the request, over those of the endpoint.

        Raises:
          RemoteError: the request failed. Its `lost` is the number of attempts that may be billed nevertheless.
        """
        asked = self.endpoint.chat(messages, max_tokens, more)
        if self.endpoint.stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(asked).encode()
        begun, lost = time.monotonic(), 0
        for attempt in range(1, self.endpoint.retries + 2):
            sent = attempt - 1
            try:
                await self._pause()
                sent = attempt
                found = await self._send(body)
            except RemoteError as error:
                lost += error.lost
                error.attempts, error.lost = sent, lost
                if attempt > self.endpoint.retries or error.kind not in _AGAIN or not self._may_wait(error):
                    raise
                await asyncio.sleep(_WAIT if error.retry_after is None else error.retry_after)
            else:
                seconds = time.monotonic() - begun
                return dataclasses.replace(found, attempts=attempt, lost=lost, seconds=seconds)
        raise AssertionError("the last attempt returns or raises")

    async def request(self, method: str, path: str, *, data: Any = None, file: BinaryIO | None = None) -> Any:
        """Sends one request to another route of the endpoint, once.

        Args:
          method: of HTTP.
          path: after the base URL, such as `/batches`.
          data: body: a mapping, which is sent as JSON, or a form of aiohttp.
          file: gets the body of the response as it comes; None: it is JSON.

        Returns:
          the decoded JSON; None with `file`.

        Raises:
          RemoteError: there was no such response. With `lost`, the request may have been acted on nevertheless.
          OSError: the file could not be written.
        """
        headers = self._headers()
        if isinstance(data, Mapping):
            data, headers["content-type"] = json.dumps(data).encode(), "application/json"
        url = _yarl(self.endpoint.base_url.rstrip("/") + path)
        full: OSError | None = None  # which the block would take for an error of the connection
        async with self._sending():
            request = self._session().request(
                method, url, data=data, headers=headers, proxy=self._proxy, allow_redirects=False
            )
            async with request as response:
                status, answer = response.status, response.headers
                if file is not None and status == 200:
                    try:
                        async for part in response.content.iter_any():
                            file.write(part)
                    except OSError as error:
                        if isinstance(error, self._aiohttp.ClientError):
                            raise
                        full = error
                    content: bytes | None = None
                else:
                    content = await _read(response)
        if full is not None:
            raise full
        if file is not None and status == 200:
            return None
        try:
            body = json.loads(content or b"")
        except (ValueError, RecursionError):
            body = None
        if status != 200:
            raise self.refusal(status, answer, body)
        if body is None:
            raise _lost("answer", f"{self.endpoint.host} sent no JSON for {path}", status)
        return body

    async def close(self) -> None:
        """Closes the connections; the next request opens new ones."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _may_wait(self, error: RemoteError) -> bool:
        return error.retry_after is None or error.retry_after <= self.endpoint.longest_wait

    async def _pause(self) -> None:
        """Waits until the endpoint takes requests again, as far as its last 429 says."""
        while (left := self._resume_at - time.monotonic()) > 0:
            if left > self.endpoint.longest_wait:
                raise RemoteError(
                    "busy", f"{self.endpoint.host} takes no requests for another {left:.0f} s", 429, retry_after=left
                )
            await asyncio.sleep(left)

    async def _send(self, body: bytes) -> Completion:
        """Sends one request. `lost` of an error is 1 where the request may have been answered and billed."""
        headers = self._headers() | {"content-type": "application/json"}
        async with self._sending():
            request = self._session().post(
                self._url, data=body, headers=headers, proxy=self._proxy, allow_redirects=False
            )
            async with request as response:
                if response.status == 200 and response.content_type == "text/event-stream":
                    return self._completion(200, response.headers, await self._assembled(response))
                content = await _read(response)
        if content is None:
            raise _lost("answer", f"{self.endpoint.host} sent more than {_MOST_BYTES >> 20} MB")
        try:
            decoded = json.loads(content)
        except (ValueError, RecursionError):
            decoded = None
        return self._completion(response.status, response.headers, decoded)

    async def _assembled(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """Returns the body of a completion that comes in pieces; whatever ends it early may be billed."""
        assembly, size = Assembly(), 0
        try:
            async for part in response.content.iter_any():
                assembly.feed(part)
                size += len(part)
                if size > _MOST_STREAMED:
                    raise ValueError(f"it has more than {_MOST_STREAMED >> 20} MB")
            body = assembly.body()
        except (ValueError, RecursionError) as error:
            raise _lost("answer", f"{self.endpoint.host} sent no whole completion: {error}", 200) from None
        if "error" in body:
            raise _lost("server", f"{self.endpoint.host}: {self._safe(reply.error_of(body)[0])}", 200)
        return body

    def _headers(self) -> dict[str, str]:
        key = {"authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {}
        return {"accept": "application/json", **key}

    @contextlib.asynccontextmanager
    async def _sending(self) -> AsyncIterator[None]:
        """Limits the time of a request, and turns what goes wrong into a `RemoteError`."""
        host, aiohttp = self.endpoint.host, self._aiohttp
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
            raise RemoteError("connection", f"{host} cannot be reached ({self._safe(str(error))})") from None
        except TimeoutError:
            raise _lost("timeout", f"{host} did not answer within {self.endpoint.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _lost("connection", f"{host} ended the connection ({self._safe(str(error))})") from None

    def _completion(self, status: int, headers: Mapping[str, str], body: Any) -> Completion:
        host = self.endpoint.host
        if status != 200:
            error = self.refusal(status, headers, body)
            if status == 429 and error.kind == "busy" and self._pauses:
                pause = _WAIT if error.retry_after is None else error.retry_after
                self._resume_at = max(self._resume_at, time.monotonic() + pause)
            raise error
        if isinstance(body, Mapping) and body.get("error") and not body.get("choices"):  # some proxies send it with 200
            raise RemoteError("server", f"{host}: {self._safe(reply.error_of(body)[0])}", status)
        try:
            return reply.parse(body, headers)
        except ValueError as error:
            raise _lost("answer", f"{host} sent no chat completion: {error}", status) from None

    def refusal(self, status: int, headers: Mapping[str, str], body: Any) -> RemoteError:
        """Returns the error that a response with another status than 200 stands for."""
        message, code = reply.error_of(body)
        error = self._refused(status, headers, message, code)
        error.code = code
        error.lost = int(status in _GATEWAY)
        return error

    def _refused(self, status: int, headers: Mapping[str, str], message: str, code: str) -> RemoteError:
        said = f"{self.endpoint.host} answered {status}" + (f": {self._safe(message)}" if message else "")
        if status == 402 or "quota" in code or "billing" in code:
            return RemoteError("quota", f"{said}; its account has no money left", status)
        if status in (401, 403):
            return RemoteError("key", f"{said}; it does not accept the key", status)
        if status in (408, 409, 429, 503):
            return RemoteError("busy", said, status, retry_after(headers))
        if status in _GATEWAY and not self.endpoint.stream:
            said += "; if that is a proxy which found the connection quiet, stream keeps it busy"
        if status >= 500:
            return RemoteError("server", said, status, retry_after(headers))
        return RemoteError("request", said, status)

    def _safe(self, text: str) -> str:
        """Returns a message of the endpoint on one line, without the key that it may quote."""
        text = text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text
        return " ".join(text.split())[:300]

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            aiohttp = self._aiohttp
            # Redirects are not followed: the key is for this endpoint only. The limit of connections is the caller's.
            wait = aiohttp.ClientTimeout(total=None, sock_connect=min(_CONNECT, self.endpoint.timeout))
            secure = _authorities() if self._url.scheme == "https" else True
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=secure), timeout=wait, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._http


def _yarl(url: str) -> yarl.URL:
    import yarl  # comes with aiohttp

    return yarl.URL(url)


def _proxy(url: str) -> str | None:
    """Returns the proxy that the environment names for a host; None for this machine and where it names none.

    aiohttp's own `trust_env` also sends the passwords of a .netrc file, in place of the key.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    known = urllib.request.getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if proxy and not proxy.startswith(("http://", "https://")):
        kind = proxy.partition("://")[0]
        raise UserError(
            f"the environment names a {kind} proxy for {host}; give one with http://, or add {host} to no_proxy."
        )
    return proxy


def _authorities() -> ssl.SSLContext:
    """Returns the certificate authorities of this machine and of certifi; a small container may lack its own."""
    context = ssl.create_default_context()
    with contextlib.suppress(ModuleNotFoundError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that `retry-after-ms` or `retry-after` (seconds or a date) asks for; None where none does."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return None
    return max(date.timestamp() - time.time(), 0.0)


def _lost(kind: Kind, message: str, status: int = 0) -> RemoteError:
    error = RemoteError(kind, message, status)
    error.lost = 1
    return error


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Returns the body of a response; None where it is too large."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MOST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)
