"""Turns a call of any API into sequences for the worker, and finished sequences into results."""

from __future__ import annotations

import dataclasses
import json

from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.request import Output
from s1jax.engine.sequence import EncodedRequest
from s1jax.serve import budgets
from s1jax.serve.protocol import ApiError, Call, Echo, Result
from s1jax.serve.ticket import Running
from s1jax.text.messages import Message

_LONGEST_WAIT = 64  # tokens; a longer wait string would compile programs, while everybody waits
_TOKEN = 32  # characters; no text has longer tokens throughout


def encode(engine: Engine, call: Call, defaults: SamplingParams, length: int) -> list[EncodedRequest]:
    """Returns the sequences of a call.

    Args:
      engine: made from a checkpoint.
      call: a new request.
      defaults: sampling parameters of the server.
      length: the most tokens of a sequence.

    Raises:
      ApiError, UserError: it cannot be answered.
    """
    assert engine.model is not None
    check_sizes(call, length)
    found = []
    adapter = call.model if call.model in engine.adapters else ""
    for request in call.requests(engine.model.tokenizer.encode):
        request = dataclasses.replace(request, adapter=adapter)
        for each in engine.encoder.encode(request, defaults, request.name):
            found.append(dataclasses.replace(each, params=fitted(engine, each, call, length)))
    return found


def check_sizes(call: Call, length: int) -> None:
    """Refuses texts that cannot fit before they are encoded: everybody waits meanwhile.

    Raises:
      ApiError: a text has more characters than `length` tokens can stand for.
    """
    wait, most = call.given.get("wait", ""), length * _TOKEN
    if len(wait) > _LONGEST_WAIT * _TOKEN:
        raise ApiError(f"wait has {len(wait)} characters; give at most {_LONGEST_WAIT} tokens.", "wait")
    for prompt in call.prompts:
        texts = [prompt] if isinstance(prompt, str) else [json.dumps(tool, ensure_ascii=False) for tool in call.tools]
        for each in prompt if isinstance(prompt, tuple) else ():
            if isinstance(each, Message):
                texts += [each.content, *(made.arguments for made in each.tool_calls)]
        if sum(map(len, texts)) > most:
            raise ApiError(
                f"the prompt has {sum(map(len, texts))} characters, but the context holds {length} tokens; shorten the"
                " prompt.",
                None, "context_length_exceeded",
            )  # fmt: skip


def fitted(engine: Engine, encoded: EncodedRequest, call: Call, length: int) -> SamplingParams:
    """Returns the parameters of a sequence within what its prompt leaves of the context.

    Raises:
      ApiError: the wait string is too long, or see `budgets.fit`.
    """
    if len(encoded.wait) > _LONGEST_WAIT:
        raise ApiError(f"wait has {len(encoded.wait)} tokens; give at most {_LONGEST_WAIT}.", "wait")
    return budgets.fit(
        encoded.params, call.max_completion_tokens, len(encoded.prompt), engine.encoder.delimiters, length
    )


def result(engine: Engine, call: Call, running: Running, output: Output) -> Result:
    """Returns a finished sequence as the writers of replies need it."""
    return Result(
        output,
        prompt_ids=len(running.request.prompt),
        delimiters=engine.encoder.delimiters,
        cached_tokens=running.sample.cached_tokens if running.sample else 0,
        device_seconds=running.device_seconds,
        echo=Echo(engine.encoder.decode(running.request.prompt)) if call.echo else None,
        token_texts=tuple(engine.encoder.decode([i]) for i in output.token_ids) if call.logprobs else (),
    )
