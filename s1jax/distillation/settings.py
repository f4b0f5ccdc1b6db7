"""What a user can set about the requests to a teacher."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from s1jax.errors import UserError

# Fields of a request that the run sets itself, and what to use in their place.
_OWN = {
    "messages": "system and template",
    "model": "the teacher's model",
    "n": "answers",
    "stream": "no streaming",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
}


@dataclasses.dataclass(frozen=True)
class Price:
    """What a teacher costs, in USD per million tokens.

    Attributes:
      prompt: of prompt tokens.
      output: of completion tokens, thinking included.
    """

    prompt: float
    output: float

    def __post_init__(self) -> None:
        for name in ("prompt", "output"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"the price of {name} tokens is {getattr(self, name)}; give USD per million, from 0 on."
                )

    def of(self, prompt_tokens: int, output_tokens: int) -> float:
        """Returns the price of a request in USD."""
        return (prompt_tokens * self.prompt + output_tokens * self.output) / 1e6


@dataclasses.dataclass(frozen=True)
class DistilSettings:
    """How a teacher is asked.

    Attributes:
      answers: of every question.
      max_tokens: most tokens of an answer, thinking included.
      temperature: None: the teacher decides.
      top_p: None: the teacher decides.
      seed: of a question's first answer; its K-th answer has `seed` + K. None: none is sent.
      body: more fields of every request, such as `{"thinking_token_budget": 8000}`.
      system: system prompt of questions that have none; empty: none is sent.
      template: the user's message; `{question}` in it stands for the question.
      max_in_flight: requests at one time.
      requests_per_minute: that are sent; 0: no such limit.
      tokens_per_minute: of prompts and answers; 0: no such limit. A request takes what it may need when it is sent, and
        gives back what it did not use.
      max_dollars: the folder never costs more, earlier runs included; None: no such limit.
      price: None: where the endpoint says the cost of a request, it is written down; otherwise it is unknown.
      prompt_overhead: most tokens that the teacher adds to a prompt: its chat template, a system prompt of its own.
      expected_tokens: of an answer, for the plan; 0: the mean of the answers that the folder has.
      max_attempts: tries of a request. Waiting because the endpoint is busy is not one.
      retry_cut: ask again for answers that were cut at a smaller `max_tokens`.
      retry_failed: ask again for requests that have failed for good.
      allow_no_thinking: go on with a teacher whose replies hold no thinking.
      num_questions: from the front; 0: all.
      longest_pause: seconds; where the endpoint wants a longer one, the run stops.
      patience: seconds without any answer, pauses that the endpoint asked for aside, after which the run stops.
    """

    answers: int = 1
    max_tokens: int = 32_768
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = 0
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    system: str = ""
    template: str = "{question}"
    max_in_flight: int = 32
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    max_dollars: float | None = None
    price: Price | None = None
    prompt_overhead: int = 256
    expected_tokens: float = 0.0
    max_attempts: int = 5
    retry_cut: bool = False
    retry_failed: bool = False
    allow_no_thinking: bool = False
    num_questions: int = 0
    longest_pause: float = 3600.0
    patience: float = 600.0

    def __post_init__(self) -> None:
        for name, least in (
            ("answers", 1), ("max_tokens", 1), ("max_in_flight", 1), ("requests_per_minute", 0),
            ("tokens_per_minute", 0), ("prompt_overhead", 0), ("expected_tokens", 0), ("max_attempts", 1),
            ("num_questions", 0), ("longest_pause", 0), ("patience", 0), ("temperature", 0), ("top_p", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be at least {least}.")
        if "{question}" not in self.template:
            raise UserError(f"template is {self.template!r:.80}; put {{question}} where the question belongs.")
        if self.answers > 1 and self.body.get("temperature", self.temperature) == 0:
            raise UserError(
                f"answers is {self.answers} at temperature 0, which gives equal ones; raise it, or ask for 1."
            )
        self._check_body()
        self._check_money()

    def _check_body(self) -> None:
        for name in self.body:
            if name in _OWN:
                raise UserError(f"body has {name}, which the run sets itself; remove it and use {_OWN[name]}.")
            if name in ("temperature", "top_p", "seed") and getattr(self, name) not in (None, self.body[name]):
                raise UserError(f"body has {name}, which is set beside it as well; give one of them.")
        try:
            json.dumps(dict(self.body), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"body has a value that JSON has not ({error}); correct it.") from None

    def _check_money(self) -> None:
        if self.max_dollars is None:
            return
        if not 0 < self.max_dollars < math.inf:
            raise UserError(f"max_dollars is {self.max_dollars}; give an amount above 0, or leave it out.")
        if self.price is None:
            raise UserError(
                "max_dollars has no price to count with; give dollars_per_million=IN,OUT: what a request may cost has"
                " to be known before it is answered."
            )
        if not (self.price.prompt and self.price.output):
            raise UserError(
                f"max_dollars with a price of {self.price.prompt:g},{self.price.output:g} USD would never be reached;"
                " give the prices of prompt and output tokens, or leave max_dollars out."
            )

    def sampling(self, answer: int) -> dict[str, Any]:
        """Returns the fields of a request for a question's answer, counted from 0; the limit of tokens is not one."""
        found: dict[str, Any] = dict(self.body)
        for name in ("temperature", "top_p"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.seed is not None:
            found["seed"] = self.seed + answer
        return found
