"""Scores the prompts of `/v1/completions` with `echo` and `logprobs`."""

from __future__ import annotations

import jax

from s1jax.engine import prompt_score
from s1jax.engine.engine import Engine
from s1jax.errors import UserError
from s1jax.serve.protocol import Call, Echo, Result, empty_output


def results(engine: Engine, call: Call) -> list[Result]:
    """Returns a result for each prompt of a call, with an `Echo`; nothing is sampled.

    Raises:
      UserError: a prompt is too long or has an id that is not in the vocabulary, or the engine runs on a mesh.
    """
    model = engine.model
    assert model is not None
    if len(jax.tree.leaves(model.params)[0].devices()) > 1:
        raise UserError("echo with logprobs needs a server on one device; this one runs on a mesh.")
    requests = call.requests(model.tokenizer.encode)
    prompts = [tuple(request.prompt_ids or ()) for request in requests]
    scores = prompt_score.score_prompts(model.params, model.config, prompts, dtype=engine.dtype)
    decode = engine.encoder.decode
    found = []
    for prompt, score in zip(prompts, scores, strict=True):
        best = [
            (decode([token]), float(logprob)) for token, logprob in zip(score.best, score.best_logprobs, strict=True)
        ]
        echo = Echo(
            text=decode(prompt),
            tokens=tuple(decode([token]) for token in prompt),
            logprobs=(None, *score.logprobs[1:].tolist()),
            top=(None, *best[:-1]),
            next=best[-1] if call.max_completion_tokens else None,
        )
        found.append(Result(empty_output(call.params), len(prompt), engine.encoder.delimiters, echo=echo))
    return found
