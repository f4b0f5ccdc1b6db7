"""The hand-off of hard questions: whether a local answer stands or a remote model is asked in its place.

A local answer is scored by how sure the model was of it (`s1jax.remote.confidence`). A question with an unsure answer
goes to the remote if the request consents, nothing in it is to stay here, the caps allow the worst case, and the remote
works. In all other cases, and where the remote fails, the local answer stands and the reply says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.remote.client import Client, RemoteError
from s1jax.remote.confidence import Confidence
from s1jax.remote.reply import Completion
from s1jax.serve import leaving
from s1jax.serve.handoff_config import CONSENTS, Consent, Loaded
from s1jax.serve.spending import Hold, Spending
from s1jax.text.messages import Message

_OFFERS, _OFFER_SECONDS = 1000, 600.0  # that wait for consent: how many, and how long
# Why an answer is the local one. Those of `Spending.reserve` are more.
REASONS = {
    "consent": "the request does not consent to a hand-off",
    "confident": "the model is sure of its answer",
    "no_question": "the last message is not the user's",
    "blocked": "the question has something that is to stay on this machine",
    "remote_down": "the remote model has failed several times in a row and is left alone for a while",
    "max_cost": "the request could cost more than its max_cost",
    "cap_request": "the request could cost more than the cap of a request",
    "cap_day": "the cap of this day is reached",
    "cap_key": "the cap of this API key is reached",
    "overrun": "hand-offs have stopped: one cost more than its worst case, or the audit file cannot be written",
    "ask": "the request wants to be asked first; the offer says what would be sent, and for how much",
    "failed": "the remote model did not answer",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its local answer.

    Attributes:
      prompt: the conversation.
      confidence: of the local answer.
      thinking: of the local answer.
      consent: `never`, `ask` or `auto`; empty: the operator's default.
      max_cost: most USD that a hand-off may cost; None: the caps say.
      key: label of the API key, which is not the key itself; empty: there is none.
      id: of the reply, for the audit file.
    """

    prompt: Sequence[Message]
    confidence: Confidence
    thinking: str = ""
    consent: str = ""
    max_cost: float | None = None
    key: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was decided.

    Attributes:
      decided: whether the remote's answer takes the place of the local one.
      reason: `unsure` or `accepted` where it does, else a name of `REASONS`.
      message: the reason as a sentence.
      score: mean log-probability, or P(wrong) where there is a fit; None for an accepted offer.
      threshold: that the score was compared with; None likewise.
      model: of the remote, in the words of the file.
      remote: host that answered or would answer.
      usd: what was spent, a failure included.
      completion: the remote's answer; None where it has none.
      offer: what would be sent, and for how much, where the request wants to be asked.
    """

    decided: bool
    reason: str
    message: str
    score: float | None
    threshold: float | None
    model: str
    remote: str
    usd: float = 0.0
    completion: Completion | None = None
    offer: Mapping[str, Any] | None = None

    def to_dict(self, local_answer: str | None = None) -> dict[str, Any]:
        """Returns the object `handoff` of a reply; has the local answer where the remote's took its place."""
        found: dict[str, Any] = {
            "decided": self.decided, "reason": self.reason, "message": self.message, "score": self.score,
            "threshold": self.threshold, "remote_model": self.model, "remote": self.remote, "cost": self.usd,
        }  # fmt: skip
        if self.decided and local_answer is not None:
            found["local_answer"] = local_answer
        if self.completion is not None and self.completion.usage is not None:
            usage = dataclasses.asdict(self.completion.usage)
            found["remote_usage"] = {name: value for name, value in usage.items() if value is not None}
        return found | ({"offer": dict(self.offer)} if self.offer else {})


@dataclasses.dataclass(frozen=True)
class _Offer:
    messages: list[dict[str, str]]
    question: Question
    expires: float


class Handoff:
    """Decides about hand-offs and makes them, from one event loop."""

    def __init__(self, loaded: Loaded, key: str, *, clock: Callable[[], float] = time.time):
        """Opens the audit file; sends nothing.

        Args:
          loaded: the operator's file.
          key: of the remote.
          clock: seconds since 1970.

        Raises:
          UserError: the audit file or the endpoint cannot be used.
          MissingPackageError: aiohttp is not installed.
        """
        self.config, self._fit = loaded.config, loaded.fit
        self._client = Client(self.config.endpoint(key))
        self.spending = Spending(self.config.spending_caps, loaded.audit, clock)
        self._breaker = CircuitBreaker(self.config.breaker.failures, self.config.breaker.seconds)
        self._patterns = [re.compile(pattern) for pattern in self.config.block_patterns]
        self._offers: dict[str, _Offer] = {}

    def may_decide(self, consent: str) -> bool:
        """Whether a request with this consent (empty: the default) can be handed off, so that its answer must wait."""
        return self._consent(consent) == "auto"

    async def decide(self, question: Question) -> Outcome:
        """Decides about one local answer, and asks the remote where that is the decision.

        A cancelled call has spent its worst case: nobody knows what the remote bills.
        """
        score, threshold, unsure = self._score(question)
        reason, detail, messages = self._obstacle(question, unsure)
        if reason:
            return self._local(reason, score, threshold, detail)
        if self._consent(question.consent) == "ask":
            return self._local("ask", score, threshold, offer=self._offer(messages, question))
        return await self._ask(messages, question, "unsure", score, threshold)

    async def accept(self, offer: str, key: str = "") -> Outcome:
        """Makes the hand-off that was offered: the user has consented to it.

        Args:
          offer: its id; an offer is good once, for ten minutes.
          key: label of the API key, which must be that of the offer.

        Raises:
          KeyError: there is no such offer.
        """
        found = self._offers.get(offer)
        if found is None or found.question.key != key or found.expires < time.monotonic():
            raise KeyError(offer)
        del self._offers[offer]
        return await self._ask(found.messages, found.question, "accepted", None, None)

    async def close(self) -> None:
        """Closes the connections and the audit file."""
        await self._client.close()
        self.spending.close()

    def _consent(self, asked: str) -> Consent:
        """The consent of a request: what it asks for, as far as the operator allows it."""
        wanted = asked or self.config.default_consent
        return CONSENTS[min(CONSENTS.index(wanted), CONSENTS.index(self.config.consent))]  # type: ignore[arg-type]

    def _score(self, question: Question) -> tuple[float, float, bool]:
        """Returns score, threshold, and whether the answer is to be handed off."""
        config = self.config
        if self._fit is None:
            assert config.logprob_below is not None
            mean = question.confidence.answer if config.logprob_of == "answer" else question.confidence.mean
            return mean, config.logprob_below, mean < config.logprob_below
        wrong = self._fit.wrong(question.confidence)
        if config.value is not None:
            expected = config.price.of(self._prompt_tokens(question), config.expected_tokens)
            threshold = expected / config.value if config.value else float("inf")
            return wrong, threshold, wrong > threshold
        threshold = self._fit.threshold(config.share) if config.share is not None else config.wrong_above or 0.0
        return wrong, threshold, wrong >= threshold and config.share != 0

    def _obstacle(self, question: Question, unsure: bool) -> tuple[str, str, list[dict[str, str]]]:
        """Returns why the local answer stands (empty: nothing stands in the way), details, and what would be sent."""
        if self._consent(question.consent) == "never":
            return "consent", "", []
        if not unsure:
            return "confident", "", []
        messages = leaving.messages(question.prompt, question.thinking, self.config.send)
        if not messages:
            return "no_question", "", []
        texts = [message["content"] for message in messages]
        if name := leaving.blocked_by(texts, self.config.block, self._patterns):
            return "blocked", f" ({name})", []
        if question.max_cost is not None and self._worst(messages) > question.max_cost:
            return "max_cost", "", []
        if not self._breaker.closed:
            return "remote_down", "", []
        return "", "", messages

    def _prompt_tokens(self, question: Question) -> int:
        """Estimates the tokens of what would be sent, at four bytes a token."""
        messages = leaving.messages(question.prompt, question.thinking, self.config.send)
        return sum(8 + len(message["content"].encode(errors="replace")) // 4 for message in messages)

    def _attempt(self, messages: Sequence[Mapping[str, str]]) -> float:
        """The most that one attempt can cost in USD: a token has at least one byte."""
        size = sum(32 + len(message["content"].encode(errors="replace")) for message in messages)
        return self.config.price.of(size, self.config.max_tokens)

    def _worst(self, messages: Sequence[Mapping[str, str]]) -> float:
        return self._attempt(messages) * (1 + self.config.retries)

    def _local(
        self, reason: str, score: float | None, threshold: float | None, detail: str = "", **more: Any
    ) -> Outcome:
        host = self._client.endpoint.host
        return Outcome(False, reason, REASONS[reason] + detail, score, threshold, self.config.model, host, **more)

    def _offer(self, messages: list[dict[str, str]], question: Question) -> dict[str, Any]:
        """Keeps an offer, and returns it as the reply has it."""
        now = time.monotonic()
        for old in [id_ for id_, offer in self._offers.items() if offer.expires < now]:
            del self._offers[old]
        while len(self._offers) >= _OFFERS:
            del self._offers[next(iter(self._offers))]
        id_ = f"offer-{secrets.token_hex(16)}"
        self._offers[id_] = _Offer(messages, question, now + _OFFER_SECONDS)
        return {
            "id": id_,
            "model": self.config.model,
            "remote": self._client.endpoint.host,
            "sends": self.config.send.names(),
            "expected_cost": self.config.price.of(self._prompt_tokens(question), self.config.expected_tokens),
            "most_cost": self._worst(messages),
            "expires_in": _OFFER_SECONDS,
        }

    async def _ask(
        self,
        messages: list[dict[str, str]],
        question: Question,
        reason: str,
        score: float | None,
        threshold: float | None,
    ) -> Outcome:
        digest = hashlib.sha256(question.prompt[-1].content.encode(errors="surrogatepass")).hexdigest()
        host = self._client.endpoint.host
        about = {"sha256": digest, "model": self.config.model, "remote": host, "request": question.id}
        if not self._breaker.enter():
            return self._local("remote_down", score, threshold)
        hold: Hold | str
        try:
            hold = self.spending.reserve(self._worst(messages), question.key, about)
        except OSError:
            hold = "overrun"
        if isinstance(hold, str):
            self._breaker.leave()
            return self._local(hold, score, threshold)
        attempt, usd, end = self._attempt(messages), hold.usd, {"end": "cancelled"}
        completion, detail = None, ""
        try:
            completion = await self._client.chat(messages, max_tokens=self.config.max_tokens)
            usd = attempt * completion.lost + self._bill(completion, attempt)
            end = {"end": "answered", "completion": completion.id, "answered_by": completion.model}
            self._breaker.succeed()
        except RemoteError as error:
            usd, detail = attempt * error.lost, f": {error}"
            end = {"end": "failed", "kind": error.kind}
            self._breaker.fail(error.kind)
        finally:
            self._breaker.leave()
            self.spending.settle(hold, usd, {**about, **end})
        if completion is not None and not completion.content.strip():
            detail = ": it sent no text"
        if detail or completion is None:
            return self._local("failed", score, threshold, detail, usd=usd, completion=completion)
        message = "the remote model has answered"
        return Outcome(True, reason, message, score, threshold, self.config.model, host, usd, completion)

    def _bill(self, completion: Completion, most: float) -> float:
        """Returns what an answer costs: the greater of what the remote says and what the price list says."""
        usage = completion.usage
        if usage is None:
            return most
        listed = self.config.price.of(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return max(listed, usage.cost or 0.0)


class CircuitBreaker:
    """Leaves a remote alone for a while that has failed several times in a row; then one request tries it.

    A key that is refused, and an account without money, count as all failures at once: they do not heal by themselves.
    All methods belong to one event loop, as those of `Handoff`.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        """Takes the number of failures in a row, and for how many seconds they open it."""
        self._most, self._seconds, self._clock = failures, seconds, clock
        self._failures, self._open_until, self._trying = 0, 0.0, False

    @property
    def closed(self) -> bool:
        """Whether a request may be sent now."""
        return self._failures < self._most or (self._clock() >= self._open_until and not self._trying)

    def enter(self) -> bool:
        """Whether a request may be sent now; the first after a pause is the one that tries."""
        allowed = self.closed
        self._trying = self._trying or (allowed and self._failures >= self._most)
        return allowed

    def leave(self) -> None:
        """A request that was let in has ended, in whatever way."""
        self._trying = False

    def succeed(self) -> None:
        """The remote has answered."""
        self._failures = 0

    def fail(self, kind: str) -> None:
        """The remote has failed; `kind` is that of a `RemoteError`."""
        if kind == "request":  # it works, and did not like this one
            return
        self._failures = self._most if kind in ("key", "quota") else self._failures + 1
        if self._failures >= self._most:
            self._open_until = self._clock() + self._seconds
