"""A client of OpenAI's Files and Batch APIs, which other endpoints have as well."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from s1jax.io import files
from s1jax.remote.client import Client, RemoteError

ROUTE = "/v1/chat/completions"  # of the requests in a file, whatever the base URL of the endpoint
ENDED = ("completed", "failed", "expired", "cancelled")
_WINDOW = "24h"
_PAGE = 100  # batches of one answer to a list
_PAGES = 20


@dataclasses.dataclass(frozen=True)
class Batch:
    """What an endpoint says of a batch.

    Attributes:
      id: in the endpoint's words.
      status: `completed`, `failed`, `expired` and `cancelled` are final.
      input_file: id of the file of requests.
      output_file: id of the file of responses; empty: there is none yet, or no request was answered.
      error_file: id of the file of requests without an answer; likewise.
      errors: why it failed, in one line.
      total: requests.
      completed: requests that were answered.
      failed: requests that were not.
    """

    id: str
    status: str
    input_file: str
    output_file: str
    error_file: str
    errors: str
    total: int
    completed: int
    failed: int


class Batches:
    """Uploads, creates and downloads batches with a client of the endpoint."""

    def __init__(self, client: Client):
        """Takes the client, which the caller closes."""
        self._client = client

    async def upload(self, path: pathlib.Path) -> str:
        """Uploads a file of requests; returns its id.

        Raises:
          RemoteError: it was not taken.
        """
        import aiohttp

        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=path.name, content_type="application/jsonl")
            found = await self._client.request("POST", "/files", data=form)
        return _id(found)

    async def create(self, file: str, name: str) -> Batch:
        """Starts a batch; not idempotent: a second call starts a second one.

        Args:
          file: id of the file of requests.
          name: for people, in the endpoint's list of batches.

        Raises:
          RemoteError: it was not started; with `lost`, it may have been.
        """
        body = {
            "input_file_id": file, "endpoint": ROUTE, "completion_window": _WINDOW, "metadata": {"s1jax": name},
        }  # fmt: skip
        return _batch(await self._client.request("POST", "/batches", data=body))

    async def get(self, id_: str) -> Batch:
        """Returns what is known of a batch now."""
        return _batch(await self._client.request("GET", f"/batches/{id_}"))

    async def cancel(self, id_: str) -> Batch:
        """Cancels a batch; what was answered is billed and can be downloaded."""
        return _batch(await self._client.request("POST", f"/batches/{id_}/cancel"))

    async def find(self, file: str) -> Batch | None:
        """Returns the newest batch of a file of requests; None if there is none."""
        after = ""
        for _ in range(_PAGES):
            found = await self._client.request("GET", f"/batches?limit={_PAGE}" + (f"&after={after}" if after else ""))
            listed = found.get("data") if isinstance(found, Mapping) else None
            if not isinstance(listed, list):
                raise RemoteError("answer", "the endpoint sent no list of batches")
            batches = [_batch(each) for each in listed]
            mine = next((batch for batch in batches if batch.input_file == file), None)
            if mine is not None or not batches or not found.get("has_more"):
                return mine
            after = batches[-1].id
        raise RemoteError("answer", f"the endpoint has more than {_PAGE * _PAGES:,} batches")

    async def download(self, file: str, path: pathlib.Path) -> None:
        """Writes a file of the endpoint, whole or not at all.

        Raises:
          RemoteError: it did not arrive.
        """
        with files.replace(path) as target:
            await self._client.request("GET", f"/files/{file}/content", file=target)


def _id(found: Any) -> str:
    id_ = found.get("id") if isinstance(found, Mapping) else None
    # It becomes part of a path.
    if not isinstance(id_, str) or not id_ or not id_.isascii() or set(id_) & set("/?#% \\"):
        raise RemoteError("answer", "the endpoint sent no id")
    return id_


def _batch(found: Any) -> Batch:
    id_ = _id(found)
    counts = found.get("request_counts") or {}
    errors = found.get("errors") or {}
    listed = errors.get("data") if isinstance(errors, Mapping) else errors
    messages = [str(each.get("message") or each.get("code")) for each in listed or () if isinstance(each, Mapping)]
    return Batch(
        id=id_,
        status=str(found.get("status")),
        input_file=str(found.get("input_file_id") or ""),
        output_file=_id({"id": found["output_file_id"]}) if found.get("output_file_id") else "",
        error_file=_id({"id": found["error_file_id"]}) if found.get("error_file_id") else "",
        errors=" ".join("; ".join(dict.fromkeys(messages[:3])).split())[:300],
        total=int(counts.get("total") or 0),
        completed=int(counts.get("completed") or 0),
        failed=int(counts.get("failed") or 0),
    )
