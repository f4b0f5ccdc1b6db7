"""Writes down the results of batches: lines of OpenAI's files of responses and errors."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from s1jax.distillation.answers import Answer, Answers
from s1jax.distillation.batch_journal import Asked
from s1jax.distillation.settings import Price
from s1jax.distillation.spending import Spending
from s1jax.distillation.states import judge, meaning
from s1jax.errors import UserError
from s1jax.remote import reply
from s1jax.remote.client import Client


class Results:
    """Takes results into an open folder."""

    def __init__(self, client: Client, price: Price | None, answers: Answers, spending: Spending):
        """Takes the open files of the folder.

        Args:
          client: names errors; nothing is sent.
          price: of batches.
          answers: of the folder.
          spending: of the folder.
        """
        self._client, self._price = client, price
        self._answers, self._spending = answers, spending

    def take(self, paths: Sequence[pathlib.Path], asked: Mapping[str, Asked]) -> collections.Counter[str]:
        """Writes down the results of requests; counts them by state, and what is of no use."""
        counts: collections.Counter[str] = collections.Counter()
        for path in paths:
            for row in _lines(path):
                key = row.get("custom_id")
                one = asked.get(key) if isinstance(key, str) else None
                if one is None:
                    counts["of no request here"] += 1
                    continue
                if (send := self._spending.reopen(one.key)) is None:
                    counts["known already"] += 1
                    continue
                counts[self._result(one, send, row)] += 1
        return counts

    def _result(self, asked: Asked, send: str, row: Mapping[str, Any]) -> str:
        """Writes down one result; returns its state, or `to be asked again`."""
        response, error = row.get("response"), row.get("error")
        status = response.get("status_code") if isinstance(response, Mapping) else None
        body = response.get("body") if isinstance(response, Mapping) else None
        entry = self._answers.entries.get(asked.key)
        made = Answer(
            key=asked.key, id=asked.id, answer=asked.answer, state="failed", send=send,
            attempts=(entry.attempts if entry else 0) + 1, lost=asked.lost, max_tokens=asked.max_tokens,
            endpoint=asked.endpoint, model=asked.model,
        )  # fmt: skip
        if status == 200:
            try:
                found = reply.parse(body, {})
            except ValueError as problem:
                lost = dataclasses.replace(made, send="", error=f"no chat completion: {problem}", lost=asked.lost + 1)
                self._answers.append(lost)
                self._spending.lose(send)
                return "failed"
            verdict = judge(found, asked.max_tokens)
            dollars = self._cost(asked, found.usage)
            made = dataclasses.replace(made, state=verdict.state, error=verdict.error, dollars=dollars)
            self._answers.append(dataclasses.replace(made.with_completion(found), final=verdict.state == "failed"))
            self._spending.settle(send, dollars or 0.0)
            return verdict.state
        if not isinstance(status, int):  # it was never sent to the model: the batch expired or was cancelled
            self._spending.free(send)
            code = str(error.get("code") or "") if isinstance(error, Mapping) else ""
            return f"to be asked again ({code:.40})" if code else "to be asked again"
        problem_ = self._client.refusal(status, {}, error if body is None else body)  # vLLM has it beside the response
        means = meaning(problem_)
        if means in ("stop", "pause"):
            self._spending.free(send)
            return f"to be asked again ({problem_.code or status!s:.40})"
        state: Literal["refused", "failed"] = "refused" if means == "refused" else "failed"
        self._answers.append(dataclasses.replace(made, state=state, error=str(problem_), final=means != "again"))
        self._spending.settle(send, 0.0)
        return state

    def _cost(self, asked: Asked, usage: reply.Usage | None) -> float | None:
        price = self._price
        if usage is not None and usage.cost is not None:
            return usage.cost
        if price is None:
            return None
        return asked.dollars if usage is None else price.of(usage.prompt_tokens, usage.completion_tokens)


def _lines(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """Yields the objects of a file of results.

    Raises:
      UserError: it cannot be read, or a line is not an object.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a file of results.") from None
    with file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is not a JSON object; fetch the results again.")
            yield row
