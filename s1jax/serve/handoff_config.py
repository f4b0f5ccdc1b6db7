"""The file of `--handoff=FILE.json`: to whom hard questions are handed, when, and for how much."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

from s1jax.config import schema
from s1jax.config.schema import require
from s1jax.errors import UserError
from s1jax.io import paths
from s1jax.remote import confidence
from s1jax.remote.client import Endpoint
from s1jax.remote.confidence import Fit
from s1jax.serve.leaving import PATTERNS, Send
from s1jax.serve.prices import Price as Price
from s1jax.serve.spending import Caps

Consent = Literal["never", "ask", "auto"]
CONSENTS: tuple[Consent, ...] = ("never", "ask", "auto")
_RULES = ("logprob_below", "wrong_above", "share", "value")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Caps in USD: of one request, of a day, and of one API key in a day (0: no cap of its own)."""

    request: float
    day: float
    key: float = 0.0


@dataclasses.dataclass(frozen=True)
class Breaker:
    """After `failures` in a row the remote is left alone for `seconds`."""

    failures: int = 3
    seconds: float = 60.0


@dataclasses.dataclass(frozen=True)
class HandoffConfig:
    """What the file says.

    Attributes:
      base_url: of the remote, such as `https://api.example.com/v1`.
      model: that is to answer, in the remote's words.
      price: of the remote.
      max_tokens: most tokens of its answer, thinking included.
      caps: see `Limits`.
      audit: path of the audit file, from the folder of this file.
      key_env: environment variable that holds the remote's key; empty: it needs none.
      consent: the most that a request may ask for.
      default_consent: of requests that do not say.
      logprob_below: hands off where a mean log-probability is below this; needs no fit.
      logprob_of: `answer`, or `all` sampled tokens, thinking included: the tokens of that mean.
      wrong_above: hands off where P(wrong) is at least this.
      share: hands off the share of questions with the highest P(wrong), as the fitted problems have it.
      value: USD that a right answer is worth; hands off where P(wrong) x value exceeds the expected price.
      fit: path of a fit that `s1jax evaluate` has written, from the folder of this file.
      mean_tokens: expected tokens of the remote's answer; 0: half of `max_tokens`.
      send: what leaves beside the last question.
      block: patterns that keep a question here, out of mail, keys, digits.
      block_patterns: more of them, as regular expressions.
      timeout: seconds for one attempt.
      retries: how often a failed attempt is repeated.
      body: more fields of every request to the remote.
      breaker: see `Breaker`.
    """

    base_url: str
    model: str
    price: Price
    max_tokens: int
    caps: Limits
    audit: str
    key_env: str = ""
    consent: Consent = "ask"
    default_consent: Consent = "never"
    logprob_below: float | None = None
    logprob_of: Literal["answer", "all"] = "answer"
    wrong_above: float | None = None
    share: float | None = None
    value: float | None = None
    fit: str = ""
    mean_tokens: int = 0
    send: Send = dataclasses.field(default_factory=Send)
    block: tuple[str, ...] = tuple(PATTERNS)
    block_patterns: tuple[str, ...] = ()
    timeout: float = 60.0
    retries: int = 1
    body: dict[str, Any] = dataclasses.field(default_factory=dict)
    breaker: Breaker = Breaker()

    def __post_init__(self) -> None:
        given = [name for name in _RULES if getattr(self, name) is not None]
        require(len(given) == 1, f"give one of {', '.join(_RULES)}, not {', '.join(given) or 'none'}.")
        require(bool(self.fit) == (given[0] != "logprob_below"), _fit_fault(given[0]))
        for name, most in (("wrong_above", 1.0), ("share", 1.0), ("value", 1e6)):
            number = getattr(self, name)
            require(number is None or 0 <= number <= most, f"{name} is {number}; it must lie in [0, {most:g}].")
        require(self.logprob_below is None or math.isfinite(self.logprob_below), "logprob_below must be finite.")
        require(1 <= self.max_tokens <= 10**7, f"max_tokens is {self.max_tokens}; give a number of 1 to 10,000,000.")
        require(0 <= self.mean_tokens <= self.max_tokens, f"mean_tokens is {self.mean_tokens}; max_tokens is less.")
        schema.from_zero("price.", self.price, "input", "output")
        require(self.price.cached is None or 0 <= self.price.cached < math.inf, "price.cached must be 0 or more.")
        schema.from_zero("caps.", self.caps, "request", "day", "key")
        require(0 < self.caps.request <= self.caps.day, "caps.request must be above 0, and caps.day at least as much.")
        require(self.breaker.failures >= 1, f"breaker.failures is {self.breaker.failures}; give 1 or more.")
        schema.from_zero("breaker.", self.breaker, "seconds")
        unknown = [name for name in self.block if name not in PATTERNS]
        require(not unknown, f"block has {unknown[:1]}; it is a list out of {', '.join(PATTERNS)}.")
        require(
            CONSENTS.index(self.default_consent) <= CONSENTS.index(self.consent),
            f"default_consent is {self.default_consent!r}, more than consent {self.consent!r} allows; raise consent.",
        )
        for pattern in self.block_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"block_patterns has {pattern!r:.80}, which is not a pattern ({error}).") from None

    @property
    def spending_caps(self) -> Caps:
        """The caps, with infinity for none."""
        return Caps(self.caps.request, self.caps.day, self.caps.key or math.inf)

    @property
    def expected_tokens(self) -> int:
        """Expected tokens of the remote's answer."""
        return self.mean_tokens or -(-self.max_tokens // 2)

    def endpoint(self, key: str) -> Endpoint:
        """Returns where requests go.

        Args:
          key: the value of the environment variable `key_env`.

        Raises:
          UserError: a value of the endpoint makes no sense.
        """
        return Endpoint(self.base_url, self.model, key, timeout=self.timeout, retries=self.retries, body=self.body)


def _fit_fault(rule: str) -> str:
    if rule == "logprob_below":
        return "fit is not used with logprob_below; drop it, or give wrong_above, share or value in its place."
    return f"{rule} needs fit, a file that s1jax evaluate with +handoff has written; without one, give logprob_below."


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checked file.

    Attributes:
      config: what it says.
      fit: the fit that it names; None: it names none.
      audit: path of the audit file.
    """

    config: HandoffConfig
    fit: Fit | None
    audit: pathlib.Path


def load(path: str, checkpoint: str = "", what: str = "--handoff") -> Loaded:
    """Reads and checks the file.

    Args:
      path: of the file.
      checkpoint: fingerprint of the weights that are served, which a fit must be made for; empty: not known.
      what: its name in messages.

    Raises:
      UserError: it cannot be read, or something in it makes no sense; names the field and the remedy.
    """
    file = paths.local(path, what)
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise UserError(f"{what}: {path} cannot be read ({reason}); docs/handoff.md has an example.") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{what}: {path} is not a JSON object; docs/handoff.md has an example.")
    try:
        config = _build(values)
        config.endpoint("")
        fit = confidence.read(file.parent / config.fit, "fit") if config.fit else None
    except UserError as error:
        raise UserError(f"{what}: {path}: {error}") from None
    if fit is not None and fit.needs_agreement:
        raise UserError(f"{what}: {path}: the fit needs the answers of fewer waits, which a server does not have.")
    if fit is not None and fit.checkpoint and checkpoint and fit.checkpoint != checkpoint:
        raise UserError(
            f"{what}: {path}: the fit was made for a checkpoint with other weights; evaluate the one that is served."
        )
    return Loaded(config, fit, file.parent / config.audit)


def _build(values: Mapping[str, Any]) -> HandoffConfig:
    if "key" in values or "api_key" in values:
        raise UserError("a key does not belong into the file; name the environment variable that holds it in key_env.")
    body = values.get("body", {})
    if not isinstance(body, Mapping) or any(not isinstance(name, str) for name in body):
        raise UserError("body must be an object of further fields of the requests.")
    own = [name for name in ("model", "messages", "stream", "n", "max_completion_tokens") if name in body]
    if own:
        raise UserError(f"body has {own[0]}, which the server sets itself; drop it.")
    rest = {name: value for name, value in values.items() if name != "body"}
    return dataclasses.replace(schema.from_dict(HandoffConfig, rest, "handoff"), body=dict(body))
