"""A real server in a thread: the application, uvicorn, and a worker with a small random model."""

import asyncio
import contextlib
import dataclasses
import socket
import threading

import tokenizers
import uvicorn

from s1jax.checkpoint import store
from s1jax.config.model import ModelConfig
from s1jax.config.sampling import SamplingParams
from s1jax.serve import app as app_lib
from s1jax.serve.protocol import Usage
from s1jax.serve.worker import Limits, Worker
from s1jax.text import chat
from s1jax.text.tokenizer import Tokenizer
from tests.engine import cases

LENGTH = 2048
FORMAT = chat.FORMATS["think"]
CONFIG = ModelConfig.dense(
    vocab_size=264, d_model=32, mlp_dim=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, context_length=LENGTH
)


def save_model(folder):
    """Writes a random model with an id for every byte, so that it says halves of characters."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(FORMAT.special))
    tokenizer = Tokenizer({"tokenizer.json": made.to_str().encode()})
    store.save_model(folder, cases.random_weights(CONFIG), CONFIG, tokenizer, FORMAT, {})
    return folder


@dataclasses.dataclass
class Running:
    """A server that runs, what its worker is, and the lines of its log."""

    url: str
    worker: Worker
    loop: asyncio.AbstractEventLoop
    log: list


@contextlib.contextmanager
def serve(
    make, about, *, limits=None, rules=None, keep_alive=5.0, params=None, wait=True, curve=None, count=Usage.of, port=0,
    handoff=None, adapters=(),
):  # fmt: skip
    """Serves an engine that `make` returns, on a free port.

    Args:
      make: returns the engine; called in the worker's thread.
      about: metadata of its checkpoint.
      limits: of the worker.
      rules: of the application.
      keep_alive: seconds of silence before a comment line.
      params: of requests that are silent.
      wait: for the engine.
      curve: of the evaluation.
      count: counts tokens and money.
      port: 0 is any free one.
      handoff: to another model.
      adapters: names of those of the engine.
    """
    worker, log = Worker(make, limits or Limits()), []
    params = params or SamplingParams(temperature=1.0, max_thinking_tokens=32, max_answer_tokens=16)
    settings = app_lib.Settings("tiny", params, keep_alive, curve, adapters)
    app = app_lib.make(worker, about, settings, rules, log.append, count, handoff)
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", proxy_headers=False)
    server, started = uvicorn.Server(config), threading.Event()
    loop = asyncio.new_event_loop()

    async def run():
        worker.start()
        if wait:
            await worker.ready()
        started.set()
        await server.serve(sockets=[listener])
        worker.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    started.wait(120)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", worker, loop, log)
    finally:
        server.should_exit = True
        thread.join(30)
        loop.close()
