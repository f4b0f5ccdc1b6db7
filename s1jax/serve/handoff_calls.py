"""Puts the hand-off between a finished sample and its reply."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s1jax.remote import confidence
from s1jax.serve.handoff import Handoff, Outcome, Question
from s1jax.serve.protocol import ApiError, Call, Result
from s1jax.text.messages import Message

# Called for every decision, with its reason and the USD that it cost.
Counter = Callable[[str, float], None]
_STATUS = {"failed": 502, "remote_down": 503}  # of an accepted offer; clients try these again, and no others


class HandoffCalls:
    """Decides for the calls of a server."""

    def __init__(self, handoff: Handoff | None, counted: Counter | None = None):
        """Takes the hand-off of the server, None if it makes none, and what counts decisions."""
        self.handoff, self._counted = handoff, counted or (lambda reason, usd: None)

    def check(self, call: Call) -> None:
        """Refuses a call that asks for a hand-off that cannot be.

        Raises:
          ApiError: 400, names the field.
        """
        if call.handoff not in ("ask", "auto"):
            return
        if self.handoff is None:
            raise ApiError("handoff: this server hands off to nobody; leave it out, or write never.", "handoff")
        if fault := _fault(call):
            raise ApiError(f"handoff: {fault}", "handoff")

    def holds(self, call: Call) -> bool:
        """Whether the answer of a call must wait for a decision."""
        return self.handoff is not None and not _fault(call) and self.handoff.may_decide(call.handoff)

    async def settle(self, call: Call, key: str, results: Sequence[Result]) -> list[Result]:
        """Returns the results as the reply shall have them.

        Args:
          call: the request.
          key: label of its API key.
          results: of the local model.
        """
        found = list(results)
        if self.handoff is None or _fault(call):
            return found
        (result,) = found
        output = result.output
        sure = confidence.measure(
            output.logprobs, output.forced, output.answer_tokens, cut=output.thinking_end != "natural"
        )
        question = Question(_conversation(call), sure, output.thinking, call.handoff, call.max_cost, key, call.id)
        outcome = await self.handoff.decide(question)
        self._counted(outcome.reason, outcome.usd)
        if not outcome.decided:
            return [dataclasses.replace(result, handoff=outcome.to_dict(), remote_cost=outcome.usd)]
        assert outcome.completion is not None
        end = "length" if outcome.completion.finish_reason == "length" else "stop"
        answered = dataclasses.replace(output, answer=outcome.completion.content, answer_end=end, stop_reason=None)
        model = outcome.completion.model or outcome.model
        about = outcome.to_dict(output.answer)
        return [dataclasses.replace(result, output=answered, model=model, handoff=about, remote_cost=outcome.usd)]

    async def accept(self, offer: str, key: str) -> dict[str, Any]:
        """Makes the hand-off of an offer and returns the reply, in the form of a chat completion.

        Raises:
          ApiError: 404, there is no such offer; 403, a cap is reached; 502 or 503, the remote does not answer.
        """
        try:
            if self.handoff is None:
                raise KeyError(offer)
            outcome = await self.handoff.accept(offer, key)
        except KeyError:
            message = f"offer: there is no offer {offer!r:.80}; it was accepted, or is older than ten minutes."
            raise ApiError(message, "offer", "offer_not_found", "not_found_error", 404) from None
        self._counted(outcome.reason, outcome.usd)
        if not outcome.decided or outcome.completion is None:
            status = _STATUS.get(outcome.reason, 403)
            raise ApiError(f"{outcome.message}.", None, outcome.reason, "handoff_error", status)
        return _reply(offer, outcome)


def _fault(call: Call) -> str:
    """Returns why a call cannot be handed off; empty if it can."""
    if call.api == "completions" or call.think_longer:
        return "only conversations are handed off; leave it out, or write never."
    if call.tools or any(message.role == "tool" or message.tool_calls for message in _conversation(call)):
        return "conversations with tools are not handed off; leave it out, or write never."
    if call.num_choices != 1:
        return f"one reply is handed off, not {call.num_choices}; leave n out."
    if call.logprobs:
        return "a remote answer has no log-probabilities of this model; leave logprobs out."
    return ""


def _conversation(call: Call) -> Sequence[Message]:
    (prompt,) = call.prompts
    return [message for message in prompt if isinstance(message, Message)]


def _reply(offer: str, outcome: Outcome) -> dict[str, Any]:
    completion = outcome.completion
    assert completion is not None
    usage: dict[str, Any] = {"cost": outcome.usd, "cost_details": {"remote_cost": outcome.usd}}
    if completion.usage is not None:
        prompt, tokens = completion.usage.prompt_tokens, completion.usage.completion_tokens
        usage |= {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    message = {"role": "assistant", "content": completion.content, "reasoning": completion.reasoning}
    choice: Mapping[str, Any] = {
        "index": 0, "message": message | {"reasoning_content": completion.reasoning}, "logprobs": None,
        "finish_reason": "length" if completion.finish_reason == "length" else "stop",
    }  # fmt: skip
    return {
        "id": offer, "object": "chat.completion", "model": completion.model or outcome.model, "choices": [choice],
        "handoff": outcome.to_dict(), "usage": usage,
    }  # fmt: skip
