"""One request to a teacher, with a key that depends on nothing but what is asked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Request:
    """What a teacher is asked.

    Attributes:
      question_id: `s1jax.data.identity.question_id` of the question.
      messages: of the chat: objects with `role` and `content`.
      sampling: fields of the request, such as temperature and seed. The limit of tokens is not one of them: an answer
        that ended by itself is the same under a larger limit, and is not paid for again.
      answer: which of the question's answers, counted from 0.
    """

    question_id: str
    messages: tuple[Mapping[str, Any], ...]
    sampling: Mapping[str, Any]
    answer: int

    def key(self, endpoint: str, model: str) -> str:
        """Returns 64 hex digits: SHA-256 of endpoint, model, messages, sampling and answer number.

        Args:
          endpoint: base URL; a slash at its end does not count.
          model: in the endpoint's words.
        """
        asked = {
            "endpoint": endpoint.rstrip("/"),
            "model": model,
            "messages": [dict(message) for message in self.messages],
            "sampling": dict(self.sampling),
            "answer": self.answer,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
