"""What answers requests: a client of an endpoint, or an engine in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from s1jax.remote.reply import Completion


class Teacher(Protocol):
    """Answers chats, any number at a time, from one event loop. `s1jax.remote.client.Client` is one.

    Keys of requests contain both properties, so that a folder may hold answers of several teachers.
    """

    @property
    def address(self) -> str:
        """Where it is: the base URL of an endpoint, or words that name an engine and its weights."""
        ...

    @property
    def model(self) -> str:
        """Its model, in the endpoint's words."""
        ...

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 0, more: Mapping[str, Any] | None = None
    ) -> Completion:
        """Returns one completion.

        Args:
          messages: objects with `role` and `content`.
          max_tokens: most tokens of the completion, thinking included; 0: the teacher decides.
          more: further fields of the request, such as temperature, top_p and seed.

        Raises:
          RemoteError: the request got no answer; its `kind` says why, its `lost` how many attempts may be billed
            although their answer never arrived.
        """
        ...

    async def close(self) -> None:
        """Gives back connections, threads or memory; nothing is asked afterwards."""
        ...
