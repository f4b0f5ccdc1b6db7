"""Judges what came back for a request: which state an answer is in, and what an error means for the run."""

from __future__ import annotations

import dataclasses
from typing import Literal

from s1jax.remote.client import RemoteError
from s1jax.remote.reply import Completion

# done: an answer that ended by itself. cut: at the limit of tokens. refused: by a filter of the teacher. failed: none.
State = Literal["done", "cut", "refused", "failed"]
# stop: nothing else can succeed. pause: nothing wrong with the request, the endpoint takes none now. again: it failed,
# another try may succeed. final: it would fail again. refused: a filter of the teacher took it.
Means = Literal["stop", "pause", "again", "final", "refused"]

_ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "")
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens")
_REFUSED = ("content_filter", "refusal", "safety", "recitation", "prohibited_content", "blocklist", "spii")
_FILTERS = ("content_filter", "content_policy", "moderation", "flagged")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The state of an answer.

    Attributes:
      state: see `State`.
      error: why it is `failed` or `refused`, in a few words; otherwise empty.
    """

    state: State
    error: str = ""


def judge(completion: Completion, max_tokens: int) -> Verdict:
    """Returns the state of an answer.

    Args:
      completion: what the teacher sent.
      max_tokens: that the request allowed.
    """
    reason = completion.finish_reason.lower()
    output = completion.usage.completion_tokens if completion.usage else 0
    if reason in _REFUSED:
        return Verdict("refused", f"finish_reason is {completion.finish_reason}")
    if reason in _CUT or completion.thinking_end == "cut" or (not reason and output >= max_tokens):
        return Verdict("cut")
    if reason not in _ENDED:
        return Verdict("failed", f"finish_reason is {completion.finish_reason:.40}")
    if not completion.content.strip():
        return Verdict("failed", "the answer is empty")
    return Verdict("done")


def meaning(error: RemoteError) -> Means:
    """Returns what an error of one request means."""
    said = f"{error.code} {error}".lower()
    if error.kind in ("request", "key") and any(word in said for word in _FILTERS):
        return "refused"
    if error.kind in ("key", "quota") or error.status == 404:
        return "stop"
    if error.status == 429 or error.status == 503 or (error.kind == "connection" and not error.lost):
        return "pause"
    return "final" if error.kind == "request" else "again"
