"""Requests as token ids, and samples as outputs with text, for one tokenizer and chat format."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from s1jax.config.sampling import SamplingParams
from s1jax.engine import seeds, stops
from s1jax.engine.request import Output, Request
from s1jax.engine.sequence import EncodedRequest, Sample, answer_begin, bounded
from s1jax.errors import UserError
from s1jax.io import readers
from s1jax.text import chat as chat_lib
from s1jax.text import conversation
from s1jax.text.delimiters import Delimiters
from s1jax.text.messages import SYSTEM_ROLES, Message

if TYPE_CHECKING:
    from s1jax.checkpoint.store import Metadata, Model


_WAITS = 1024  # wait strings whose ids are kept; each request may bring another one


class Encoder:
    """Encodes requests and decodes samples; an engine keeps one, which decodes the vocabulary once."""

    def __init__(self, model: Model | Metadata):
        """Takes the tokenizer and the chat format of a checkpoint; its weights are not used."""
        self._tokenizer, self._chat = model.tokenizer, model.chat
        self._waits: dict[str, tuple[int, ...]] = {}  # ids of each wait string

    @functools.cached_property
    def delimiters(self) -> Delimiters:
        """The delimiters of the chat format."""
        return chat_lib.delimiters(self._tokenizer, self._chat)

    def encode(
        self, request: Request, defaults: SamplingParams, name: str, *, system: str = "", place: int = 0
    ) -> list[EncodedRequest]:
        """Encodes a request, once for each of its `n` samples, which differ in their seeds.

        Greedy sampling has one sample.

        Args:
          request: what a user asks for.
          defaults: parameters of a request that has none.
          name: what error messages call a request without a name.
          system: system prompt of a request that has none.
          place: of the request in its call, see `Request.index`.

        Raises:
          UserError: for a bad prompt, system prompt, effort or wait string.
        """
        first = self.encode_one(request, defaults, name, system=system)
        params = first.params
        if params.temperature == 0:
            return [first]
        index = request.index
        if index is None:
            index = place if request.params is None else 0
        each = [seeds.derive(params.seed, index, repetition) for repetition in range(params.n)]
        return [dataclasses.replace(first, params=dataclasses.replace(params, seed=seed, n=1)) for seed in each]

    def encode_one(
        self, request: Request, defaults: SamplingParams, name: str = "the request", *, system: str = ""
    ) -> EncodedRequest:
        """Encodes a request with its own seed and `n`; arguments and errors are those of `encode`."""
        name, params = request.name or name, request.params or defaults
        prompt = tuple(self._prompt(request, name, self.system(request, system), params.reasoning_effort))
        try:
            wait = self._wait(params.wait)
        except UserError as error:  # the call's wait string belongs to no single request
            raise UserError(str(error) if params.wait == defaults.wait else f"{name}: {error}") from None
        params = bounded(params, self.delimiters, name)
        return EncodedRequest(prompt, params, wait, name, self._finder(params), adapter=request.adapter)

    def system(self, request: Request, default: str) -> str:
        """The system prompt of a request: its own, that of its messages, or `default`."""
        if request.system is not None:
            return request.system
        messages = request.prompt
        if isinstance(messages, (list, tuple)) and messages:
            first = messages[0]
            if isinstance(first, Message) and first.role in SYSTEM_ROLES:
                return first.content
        return default

    def _prompt(self, request: Request, name: str, system: str, effort: str) -> list[int]:
        if not isinstance(system, str):
            raise UserError(f"{name}: system is {system!r}; it must be a string.")
        readers.check_length(system, name, "system")
        if (request.prompt is None) == (request.prompt_ids is None):
            raise UserError(f"{name} must have exactly one of prompt and prompt_ids.")
        if request.prompt_ids is not None:
            if system:
                raise UserError(f"{name}: system goes with question, not with prompt_ids, which are used as they are.")
            if request.tools:
                raise UserError(f"{name}: tools go with messages, not with prompt_ids, which are used as they are.")
            if effort:
                raise UserError(
                    f"{name}: reasoning_effort goes with question, not with prompt_ids, which are used as they are."
                )
            return _whole_numbers(request.prompt_ids, name)
        _, messages = conversation.split_system(_messages(request, name))
        if not messages or (messages[-1].role == "user" and not messages[-1].content.strip()):
            raise UserError(f"{name}: the prompt is empty; give the text of a question.")
        for message in messages:
            readers.check_length(message.content, name, "question")
            readers.check_length(message.thinking or "", name, "thinking")
        try:
            messages = [Message("system", system), *messages]
            fmt = chat_lib.with_effort(self._chat, effort)
            return conversation.encode(self._tokenizer, fmt, messages, request.tools)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _wait(self, wait: str) -> tuple[int, ...]:
        if wait not in self._waits:
            if len(self._waits) >= _WAITS:
                self._waits.clear()
            self._waits[wait] = chat_lib.encode_wait(self._tokenizer, self._chat, self.delimiters, wait)
        return self._waits[wait]

    def _finder(self, params: SamplingParams) -> stops.Finder | None:
        return stops.Finder(self._tokenizer.decode, params.stop) if params.stop else None

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return self._tokenizer.decode(ids)

    def texts(self, sample: Sample, params: SamplingParams) -> tuple[str, str]:
        """Returns the texts of thinking and answer so far, without delimiters, stop token, stop string, outer space."""
        start = len(self.delimiters.think_start)
        thinking = self.decode(sample.ids[start : start + sample.thinking_tokens].tolist()).strip()
        if not sample.answer_tokens:
            return thinking, ""
        begin, num_forced = answer_begin(sample, self.delimiters)
        finder = self._finder(params)
        if sample.stop_reason is not None and finder is not None:
            return thinking, finder.before(sample.ids[begin:].tolist(), num_forced).strip()
        end = len(sample.ids) - (sample.answer_end == "stop")
        return thinking, self.decode(sample.ids[begin:end].tolist()).strip()

    def output(
        self,
        encoded: EncodedRequest,
        sample: Sample,
        *,
        system: str = "",
        sample_index: int = 0,
        num_samples: int = 1,
    ) -> Output:
        """Returns the output of a finished sequence.

        Args:
          encoded: its request.
          sample: what was sampled for it.
          system: system prompt that was used.
          sample_index: of the samples of the user's request.
          num_samples: how many there are.
        """
        thinking, answer = self.texts(sample, encoded.params)
        return Output(
            thinking=thinking,
            answer=answer,
            token_ids=tuple(sample.ids.tolist()),
            forced=tuple(sample.forced.tolist()),
            logprobs=tuple(sample.logprobs.tolist()),
            logprob=sample.logprob,
            thinking_tokens=sample.thinking_tokens,
            answer_tokens=sample.answer_tokens,
            waits=sample.waits,
            thinking_end=sample.thinking_end,
            answer_end=sample.answer_end,
            stop_reason=sample.stop_reason,
            params=encoded.params,
            sample_index=sample_index,
            num_samples=num_samples,
            system=system,
        )


def _messages(request: Request, name: str) -> Sequence[Message]:
    """Returns the prompt as the messages of a conversation."""
    messages = request.prompt
    if isinstance(messages, str):
        return [Message("user", messages)]
    if not isinstance(messages, (list, tuple)) or not all(isinstance(each, Message) for each in messages):
        raise UserError(f"{name}: the prompt is {messages!r:.80}; give a text or a list of s1jax.Message.")
    if request.system is not None and any(message.role in SYSTEM_ROLES for message in messages):
        raise UserError(f"{name}: system is given twice, as a message and beside it; keep one.")
    return messages


def _whole_numbers(ids: Sequence[int], name: str) -> list[int]:
    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    whole = isinstance(ids, (list, tuple)) and all(isinstance(i, numbers.Integral) for i in ids)
    if not whole or any(isinstance(i, bool) for i in ids):
        raise UserError(f"{name}: prompt_ids must be a list of whole numbers.")
    return [int(i) for i in ids]
