"""The flags of `s1jax evaluate` for strategies with a hand-off."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from s1jax.errors import UserError
from s1jax.evaluation import strategies
from s1jax.evaluation.handoff import Price, Setup
from s1jax.evaluation.remote import RemoteEngine
from s1jax.evaluation.strategies import Strategy
from s1jax.io import paths
from s1jax.remote import confidence
from s1jax.remote.client import Endpoint

_REMOTE = flags.DEFINE_string(
    "remote", None, "Who answers what is handed off: https://HOST/v1, or a strategy such as forcing:waits=8."
)
_MODEL = flags.DEFINE_string("remote_model", None, "Model of the endpoint, in its own words.")
_KEY = flags.DEFINE_string("remote_key_env", "", "Environment variable that holds the endpoint's key; empty: no key.")
_TOKENS = flags.DEFINE_integer(
    "remote_max_tokens", 0, "Most tokens of an answer of the endpoint, thinking included; 0: it decides.", 0
)
_BODY = flags.DEFINE_string("remote_body", "", 'More fields of its requests as JSON, for example {"temperature": 0}.')
_AT_ONCE = flags.DEFINE_integer("remote_at_once", 8, "Questions that it is asked at one time.", 1)
_LOCAL_PRICE = flags.DEFINE_list("local_price", ["0", "0"], "USD per million prompt and output tokens, as 0.1,0.4.")
_REMOTE_PRICE = flags.DEFINE_list("remote_price", ["0", "0"], "The same of the remote; an endpoint may say it itself.")
_FIT = flags.DEFINE_string("handoff_fit", None, "Fit of an evaluation on other problems; by default fitted crosswise.")


def setup(chosen: Sequence[Strategy], wait: str) -> Setup | None:
    """Returns what the flags say about the remote; None where no strategy hands off.

    Args:
      chosen: the strategies.
      wait: the string of strategies that name none.

    Raises:
      UserError: a flag is missing, of no use or wrong.
    """
    asking = [strategy for strategy in chosen if strategy.handoff is not None]
    if not asking:
        for flag in (_REMOTE, _MODEL, _FIT):
            if flag.value:
                raise UserError(f"--{flag.name} is for strategies with handoff; add +handoff:q=0.3 to one, or drop it.")
        return None
    if not _REMOTE.value:
        raise UserError(
            f'"{asking[0].name(wait)}" hands off, but --remote is missing; name an endpoint such as https://HOST/v1, or'
            " a strategy such as forcing:waits=8."
        )
    engine = _endpoint(_REMOTE.value) if "://" in _REMOTE.value else None
    if engine is None and (_MODEL.value or _KEY.value or _BODY.value or _TOKENS.value):
        raise UserError(f"--remote={_REMOTE.value} is a strategy; drop the flags of an endpoint, or give its address.")
    remote = Strategy(remote=engine.endpoint.model) if engine else strategies.parse(_REMOTE.value)
    fit = confidence.read(paths.local(_FIT.value, "--handoff_fit"), "--handoff_fit") if _FIT.value else None
    return Setup(remote, _price(_LOCAL_PRICE), _price(_REMOTE_PRICE), fit, engine)


def asked() -> dict[str, Any]:
    """The flags that determine the remote's answers, for results.json; empty without a remote."""
    if not _REMOTE.value:
        return {}
    return {flag.name: flag.value for flag in (_REMOTE, _MODEL, _TOKENS, _BODY)}


def _endpoint(url: str) -> RemoteEngine:
    if not _MODEL.value:
        raise UserError("--remote_model is missing; name the model of the endpoint.")
    key = ""
    if _KEY.value:
        key = os.environ.get(_KEY.value, "")
        if not key:
            raise UserError(f"--remote_key_env names {_KEY.value}, which is not set; export it, or drop the flag.")
    try:
        body = json.loads(_BODY.value) if _BODY.value else {}
    except ValueError as error:
        raise UserError(f"--remote_body is not JSON ({error}); correct it.") from None
    if not isinstance(body, Mapping):
        raise UserError('--remote_body must be a JSON object, such as {"temperature": 0}.')
    try:
        return RemoteEngine(
            Endpoint(url, _MODEL.value, key, body=body), max_tokens=_TOKENS.value, at_once=_AT_ONCE.value
        )
    except UserError as error:
        raise UserError(f"--remote: {error}") from None


def _price(flag: flags.FlagHolder[list[str]]) -> Price:
    try:
        prompt, output = (float(text) for text in flag.value)
    except ValueError:
        raise UserError(f"--{flag.name} is {','.join(flag.value)}; give two numbers, such as 0.1,0.4.") from None
    try:
        return Price(prompt, output)
    except UserError as error:
        raise UserError(f"--{flag.name}: {error}") from None
