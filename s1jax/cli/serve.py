"""Serves a checkpoint over HTTP, with the APIs of OpenAI and Anthropic and thinking budgets for each request.

    python -m launch.serve [--checkpoint=CKPT] [--host=127.0.0.1] [--port=8000] [--slots=B] [--cache_tokens=N]
        [--cache_length=S] [--dtype=float32] [--cache_dtype=int8] [--weight_dtype=int8|int4|fp8|mxfp4]
        [--mesh=data=2,tensor=4] [--served_model_name=NAME] [--api_key_file=FILE] [--allowed_hosts=NAME,...]
        [--allowed_origins=URL,...] [--max_queue=N] [--max_queue_tokens=N] [--drain_seconds=S]
        [--request_log=FILE.jsonl] [--prices=FILE.json] [--dollars_per_hour=D] [--handoff=FILE.json]

Without --checkpoint it serves the result of the quickstart if there is one, else package:countdown_base. GET /health is
503 until everything is compiled. SIGTERM and Ctrl-C: requests that run have --drain_seconds to finish, new ones get a
503, and the process ends with code 0. A second signal ends it at once, with 128 + the signal. It ends with code 1 if
the engine fails or stalls, and with 2 for bad flags.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import ipaddress
import json
import logging
import os
import pathlib
import signal
import socket
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from s1jax.cli import command, engine_flags, terminal
from s1jax.errors import MissingPackageError, UserError
from s1jax.io import paths

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from s1jax.checkpoint.store import Metadata
    from s1jax.engine.engine import Engine
    from s1jax.serve.handoff import Handoff
    from s1jax.serve.worker import Worker

FLAGS = flags.FLAGS

_BASE, _QUICKSTART = "package:countdown_base", "runs/quickstart"
_FLUSH_SECONDS = 5  # for the last bytes of answers, when the process ends

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", f"s1jax checkpoint, training workdir or package:NAME; default: {_QUICKSTART}, else {_BASE}."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0: any free one.", lower_bound=0, upper_bound=65535)
_SLOTS = flags.DEFINE_integer("slots", 16, "Batch slots: sequences that are decoded at one time.", lower_bound=1)
_CACHE_TOKENS = flags.DEFINE_integer(
    "cache_tokens", 0, "Tokens of the KV cache, for all sequences; 0: what fits.", lower_bound=0
)
_CACHE_LENGTH = flags.DEFINE_integer(
    "cache_length", 0, "Longest sequence in tokens; 0: the context length of the model.", lower_bound=0
)
_NAME = flags.DEFINE_string("served_model_name", "", "Name of the model in the APIs; default: the checkpoint's.")
_ADAPTERS = flags.DEFINE_list(
    "adapters",
    [],
    "Adapters of low rank as NAME=DIR, PEFT folders or checkpoints of runs with lora.rank; a request names one as its"
    " model.",
)
_KEYS = flags.DEFINE_string("api_key_file", "", "File of API keys, one a line, that only its owner can read.")
_ORIGINS = flags.DEFINE_list(
    "allowed_origins", [], "Sites whose pages may ask, as in https://chat.example.org; *: all."
)
_HOSTS = flags.DEFINE_list("allowed_hosts", [], "Names that the server is called by, beside IP addresses; *: any.")
_QUEUE = flags.DEFINE_integer("max_queue", 256, "Sequences that may wait for a batch slot.", lower_bound=0)
_QUEUE_TOKENS = flags.DEFINE_integer(
    "max_queue_tokens", 1_000_000, "Prompt tokens of the sequences that wait.", lower_bound=1
)
_DRAIN = flags.DEFINE_float("drain_seconds", 30.0, "Time for what runs when the server is stopped.", lower_bound=0.0)
_STALL = flags.DEFINE_float(
    "watchdog_seconds", 300.0, "The process ends if the engine makes no progress for so long.", lower_bound=1.0
)
_KEEP_ALIVE = flags.DEFINE_float(
    "keep_alive_seconds", 5.0, "A silent stream gets a comment line after so long.", lower_bound=0.1
)
_PRICES = flags.DEFINE_string(
    "prices",
    "",
    'JSON file of prices in USD per million tokens: {"MODEL": {"input": 0.5, "cached": 0.05, "output": 2}}.',
)
_DOLLARS = flags.DEFINE_float(
    "dollars_per_hour", None, "What the devices cost; replies then have their share of it.", lower_bound=0.0
)
_LOG = flags.DEFINE_string("request_log", "", "File to which a JSON line is added for each request; without its text.")
_HANDOFF = flags.DEFINE_string("handoff", "", "File that says which questions go to which bigger model; see the docs.")


def main() -> int:
    for module in ("starlette", "uvicorn", "prometheus_client"):
        try:
            __import__(module)
        except ImportError:
            raise MissingPackageError("serving", module.replace("_", "-"), "serve") from None
    from s1jax.checkpoint import store
    from s1jax.serve import app as app_lib
    from s1jax.serve import prices as prices_lib
    from s1jax.serve.guards import Rules
    from s1jax.serve.worker import Limits, Worker

    keys = read_keys(_KEYS.value) if _KEYS.value else ()
    if _PRICES.value:
        prices = prices_lib.read(_PRICES.value, _DOLLARS.value)
    else:
        prices = prices_lib.Prices(dollars_per_hour=_DOLLARS.value)
    engine_flags.parse_mesh(engine_flags.MESH.value)
    if _ADAPTERS.value and _HANDOFF.value:
        raise UserError("--handoff was fitted to the answers of the model without adapters; leave --adapters out.")
    checkpoint = _CHECKPOINT.value or _default_checkpoint()
    about, curve, fingerprint = store.using(checkpoint, _describe)
    with contextlib.ExitStack() as stack:
        handoff = stack.enter_context(_handoff(_HANDOFF.value, fingerprint)) if _HANDOFF.value else None
        log = stack.enter_context(_request_log(_LOG.value)) if _LOG.value else None
        listener = stack.enter_context(listen(_HOST.value, _PORT.value))
        host, port = listener.getsockname()[:2]
        wide = not ipaddress.ip_address(host).is_loopback
        if wide and not keys:
            _say(f"warning: {host} is reached from other machines and needs no key; give --api_key_file.")
        name = checked_name(_NAME.value or model_name(checkpoint))
        adapters = read_adapters(_ADAPTERS.value, name)
        worker = Worker(
            lambda: store.using(checkpoint, lambda folder: _load(folder, adapters)),
            Limits(_CACHE_TOKENS.value, _QUEUE.value, _QUEUE_TOKENS.value, _STALL.value),
        )
        settings = app_lib.Settings(model=name, keep_alive=_KEEP_ALIVE.value, curve=curve, adapters=tuple(adapters))
        rules = Rules(keys, tuple(_HOSTS.value), tuple(_ORIGINS.value))
        app = app_lib.make(worker, about, settings, rules, log, prices.count, handoff)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return run(worker, app, listener, _DRAIN.value, lambda: _say(f"serving {settings.model} on {url}"))


def run(
    worker: Worker, app: ASGIApp, listener: socket.socket, drain_seconds: float, on_ready: Callable[[], None]
) -> int:
    """Serves until a signal or a failure; returns the exit code of the process.

    Args:
      worker: not yet started.
      app: that asks it.
      listener: a bound socket; closed at the end.
      drain_seconds: time for what runs, after the first signal.
      on_ready: called when requests are taken.
    """
    import uvicorn

    logger = logging.getLogger("uvicorn.error")  # for tracebacks, which absl would leave out
    logger.handlers, logger.propagate = [logging.StreamHandler()], False
    logger.setLevel(logging.ERROR)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, proxy_headers=False,
        timeout_keep_alive=75, timeout_graceful_shutdown=_FLUSH_SECONDS, backlog=2048,
    )  # fmt: skip
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(_server(config), worker, listener, drain_seconds, on_ready))


def _server(config: Any) -> Any:
    """Returns a server of uvicorn, which is imported by the first one."""
    import uvicorn

    class Server(uvicorn.Server):
        """A server that leaves signals to us: uvicorn would refuse connections at the first one."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    return Server(config)


async def _serve(
    server: Any, worker: Worker, listener: socket.socket, drain_seconds: float, on_ready: Callable[[], None]
) -> int:
    loop = asyncio.get_running_loop()
    failures: list[BaseException] = []
    signals: list[int] = []

    def stall() -> None:
        _say(f"error: the engine made no progress for {_STALL.value:g} s; the process ends.")
        os._exit(command.CRASHED)

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    async def drain() -> None:
        cut = await worker.drain(drain_seconds)
        _say(f"stopped{f'; {cut} requests were cut off' if cut else ''}")
        server.should_exit = True

    def receive(number: int) -> None:
        signals.append(number)
        if len(signals) > 1 or worker.state != "ready":
            os._exit(128 + number)
        _say(f"stopping: what runs has {drain_seconds:g} s; a second signal stops at once")
        tasks.append(asyncio.ensure_future(drain()))

    async def announce() -> None:
        await worker.ready()
        if worker.state == "ready":
            on_ready()

    worker.on_stall, worker.on_failure = stall, fail
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, receive, number)
    worker.start()
    tasks = [asyncio.ensure_future(announce())]
    await server.serve(sockets=[listener])
    worker.stop()
    await asyncio.to_thread(worker.join, _FLUSH_SECONDS)
    for task in tasks:
        await task
    if not failures:
        return 0
    if isinstance(failures[0], UserError):
        raise failures[0]
    traceback.print_exception(failures[0])
    return command.CRASHED


def _load(folder: pathlib.Path, adapters: Mapping[str, str]) -> Engine:
    engine_flags.say_step(_CHECKPOINT.value or os.fspath(folder), folder)
    return engine_flags.engine(os.fspath(folder), _SLOTS.value, _CACHE_LENGTH.value, adapters)


def read_adapters(texts: list[str], model: str) -> dict[str, str]:
    """Returns name -> folder of `--adapters`; `model`: name of the served model.

    Raises:
      UserError: an item is not NAME=DIR, or a name is taken.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, folder = text.strip().partition("=")
        if not name or not folder:
            raise UserError(f"--adapters has {text!r:.80}; write NAME=DIR, with commas between several.")
        if name in found or name == model:
            raise UserError(f"--adapters: two models are called {name!r:.80}; give each a name of its own.")
        found[name] = folder
    return found


def _default_checkpoint() -> str:
    from s1jax.checkpoint import store

    try:
        store.resolve(_QUICKSTART)
        found = _QUICKSTART
    except UserError:
        found = _BASE
    what = "the quickstart's result" if found == _QUICKSTART else "the model that comes with s1jax"
    _say(f"note: --checkpoint is not given; this is {found}, {what}")
    return found


def model_name(checkpoint: str) -> str:
    """Returns what the APIs call a checkpoint: the last part of its path."""
    return checkpoint.rstrip("/").rpartition("/")[2].removeprefix("package:")


def checked_name(name: str) -> str:
    """Returns a name that replies, headers and logs can have.

    Raises:
      UserError: it cannot be printed, or has more than 200 characters.
    """
    if not name.isprintable() or not 0 < len(name) <= 200:
        raise UserError(
            f"--served_model_name={name[:200]!a} must have 1 to 200 printable characters; give another one."
        )
    return name


def _describe(folder: pathlib.Path) -> tuple[Metadata, Mapping[str, Any] | None, str]:
    """What a checkpoint says of itself, the curve of its evaluation, and its fingerprint."""
    from s1jax.checkpoint import digests, store
    from s1jax.serve import curve

    metadata, fingerprint = store.load_metadata(folder), digests.fingerprint(folder)
    return metadata, curve.find(folder, fingerprint), fingerprint


def read_keys(name: str) -> tuple[str, ...]:
    """Returns the API keys of a file: one a line; empty lines and those that begin with # are left out.

    Raises:
      UserError: others can read the file, or it has no key in UTF-8 text.
    """
    path = paths.local(name, "--api_key_file")
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # reading a pipe would never end
        raise UserError(f"--api_key_file={name} is not a file; write one key a line.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"--api_key_file={name} can be read by other users; chmod 600 {name} makes it yours alone.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--api_key_file={name} is not a text file in UTF-8; write one key a line.") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UserError(f"--api_key_file={name} has no key; write one a line.")
    return keys


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address, before anything slow is done.

    Raises:
      UserError: the port is in use, or the address is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host={host} is not an address of this machine ({error.strerror or error}).") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port={port} of {host} is in use; give another one, or end the process that has it."
            ) from None
        what = (error.strerror or "").lower()
        raise UserError(f"--host={host} --port={port} cannot be listened on: {what}; give others.") from None
    return listener


@contextlib.contextmanager
def _handoff(name: str, fingerprint: str) -> Iterator[Handoff]:
    """Gives the hand-off that a file describes; `fingerprint`: of the weights that are served."""
    from s1jax.serve import handoff_config
    from s1jax.serve.handoff import Handoff

    loaded = handoff_config.load(name, fingerprint)
    config = loaded.config
    key = os.environ.get(config.key_env, "") if config.key_env else ""
    if config.key_env and not key:
        raise UserError(f"--handoff: {name} names the key {config.key_env}, which is not set; export it.")
    found = Handoff(loaded, key)
    _say(
        f"note: questions may be handed to {config.model} at {config.endpoint('').host} (consent: {config.consent}; by"
        f" default {config.default_consent}), for at most {config.caps.day:g} USD a day; every one is noted in"
        f" {loaded.audit}"
    )
    try:
        yield found
    finally:
        found.spending.close()


@contextlib.contextmanager
def _request_log(name: str) -> Any:
    """Gives a function that adds a JSON line to a file."""
    with paths.local(name, "--request_log").open("a", encoding="utf-8", buffering=1) as file:

        def write(entry: Mapping[str, Any]) -> None:
            time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            try:
                file.write(json.dumps({"time": time, **entry}) + "\n")
            except OSError as error:  # a full disk ends the log, not the server
                _say(f"warning: --request_log={name}: {(error.strerror or '').lower()}")

        yield write


def _say(sentence: str) -> None:
    print(terminal.safe(sentence), file=sys.stderr, flush=True)
