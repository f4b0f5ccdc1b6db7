"""The money of a folder: the worst case of a request is reserved before it is sent, so that no cap is passed.

`sent.jsonl` has a line for every request that was sent. A request whose answer never arrived, because the connection
broke or the process was killed, stays there and counts as possible spend with its worst case.

The worst case is the bound of the prompt's tokens plus `max_tokens`, at the price. A token stands for at least one byte
of text: byte-level vocabularies have no shorter ones, and those of SentencePiece fall back to bytes. Some normalise to
NFKC first. So a prompt has at most as many tokens as the longer of the two forms has bytes, and what the teacher adds.
"""

from __future__ import annotations

import pathlib
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.distillation.answers import Index
from s1jax.distillation.settings import Price
from s1jax.io.journal import Journal, fingerprint, scan

SENT = "sent.jsonl"
_FORMAT = fingerprint({"journal": "requests sent to a teacher", "version": 1})
_SLACK = 1e-9  # USD, of rounding
_PER_MESSAGE = 16  # tokens around a message: role and delimiters


def prompt_bound(messages: Sequence[Mapping[str, Any]], overhead: int) -> int:
    """Returns the most tokens that a prompt can have.

    Args:
      messages: objects with `content`, a text.
      overhead: most tokens that the teacher adds: its chat template, a system prompt of its own.
    """
    return overhead + sum(_PER_MESSAGE + _bytes(str(message["content"])) for message in messages)


def _bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


class Spending:
    """What the requests of a folder have cost and may cost yet.

    Attributes:
      spent: USD of the answers that arrived.
      possible: USD of requests that may be billed although their answer never arrived.
      reserved: USD of requests in flight.
      lost: keys of the requests of earlier runs whose answer never arrived, one for each.
      num_lost: requests of all runs whose answer never arrived.
    """

    def __init__(self, folder: pathlib.Path, index: Index, price: Price | None, cap: float | None):
        """Opens `sent.jsonl` for this process alone.

        Args:
          folder: of the answers.
          index: of the answers there.
          price: of earlier requests whose cost is unknown, because there was no price then; None: they count nothing.
          cap: USD that spent, possible and reserved together never pass; None: no cap.

        Raises:
          UserError: another process writes it, or it is something else.
        """
        self.reserved, self._cap = 0.0, cap
        self._open: dict[str, float] = {}
        found = _Found()
        self._journal = Journal(folder / SENT, _FORMAT, found.add)
        self.spent, self.possible, self.lost = found.sums(index, price)
        self.num_lost = len(self.lost)
        self._earlier = found.open(index, price)

    def fits(self, dollars: float) -> bool:
        """Whether a request with this worst case may be sent now."""
        return self._cap is None or self.spent + self.possible + self.reserved + dollars <= self._cap + _SLACK

    def send(self, key: str, prompt_tokens: int, max_tokens: int, dollars: float) -> str:
        """Writes down that a request is about to be sent and reserves its worst case; returns an id for it."""
        send = secrets.token_hex(6)
        known = dollars or None  # without a price
        row = {"send": send, "key": key, "prompt": prompt_tokens, "max_tokens": max_tokens, "dollars": known}
        self._journal.append(row)
        self._open[send] = dollars
        self.reserved += dollars
        return send

    def is_open(self, key: str) -> bool:
        """Whether a request of an earlier run is still open, see `reopen`."""
        return bool(self._earlier.get(key))

    def reopen(self, key: str) -> str | None:
        """Returns the id of the newest request of an earlier run that is still open, and reserves its worst case again.

        None: there is none with this key, or its answer is there.
        """
        sends = self._earlier.get(key)
        if not sends:
            return None
        send, dollars = sends.pop()
        self._open[send] = dollars
        self.possible = max(self.possible - dollars, 0.0)
        self.reserved += dollars
        self.num_lost -= 1
        return send

    def settle(self, send: str, dollars: float) -> None:
        """Replaces a reservation by what the request cost. The line of its answer, which has the id, is on disk."""
        self._end(send)
        self.spent += dollars

    def free(self, send: str) -> None:
        """Ends a reservation of a request that costs nothing and has no line of its own."""
        self._journal.append({"send": send})
        self._end(send)

    def lose(self, send: str) -> float:
        """Counts a request that may be billed although its answer never arrived; returns its worst case in USD."""
        dollars = self._end(send)
        self.possible += dollars
        self.num_lost += 1
        return dollars

    def close(self) -> None:
        """Syncs the file to disk and releases its lock."""
        self._journal.close()

    def _end(self, send: str) -> float:
        dollars = self._open.pop(send)
        self.reserved = self.reserved - dollars if self._open else 0.0
        return dollars


class _Found:
    """Collects the lines of `sent.jsonl`."""

    def __init__(self) -> None:
        self._sent: dict[str, Mapping[str, Any]] = {}

    def add(self, _: int, row: Mapping[str, Any]) -> None:
        """Takes a line: of a request that is sent, or of the end of one that costs nothing."""
        if "key" in row:
            self._sent[row["send"]] = row
        else:
            self._sent.pop(row["send"], None)

    def sums(self, index: Index, price: Price | None) -> tuple[float, float, list[str]]:
        """Returns USD spent, USD possible, and the keys of the requests that neither ended nor have an answer."""
        spent = index.totals.dollars
        for send, tokens in index.unpriced.items():
            if price is not None and tokens is not None:
                spent += price.of(*tokens)
            elif send in self._sent:
                spent += _worst(self._sent[send], price)
        open_ = [row for send, row in self._sent.items() if send not in index.sends]
        return spent, sum(_worst(row, price) for row in open_), [row["key"] for row in open_]

    def open(self, index: Index, price: Price | None) -> dict[str, list[tuple[str, float]]]:
        """Returns id and worst case of the requests that neither ended nor have an answer, by key, oldest first."""
        found: dict[str, list[tuple[str, float]]] = {}
        for send, row in self._sent.items():
            if send not in index.sends:
                found.setdefault(row["key"], []).append((send, _worst(row, price)))
        return found


def _worst(row: Mapping[str, Any], price: Price | None) -> float:
    if row["dollars"] is not None:
        return float(row["dollars"])
    return worst(price, row["prompt"], row["max_tokens"])


def look(folder: pathlib.Path, index: Index, price: Price | None) -> tuple[float, float]:
    """Returns what the requests of a folder have cost and may have cost, in USD; writes nothing, see `Spending`."""
    found = _Found()
    if (folder / SENT).exists():
        for begin, _, row in scan(folder / SENT, _FORMAT):
            found.add(begin, row)
    return found.sums(index, price)[:2]


def worst(price: Price | None, prompt_tokens: int, max_tokens: int) -> float:
    """Returns the most that a request can cost in USD; 0 without a price."""
    return price.of(prompt_tokens, max_tokens) if price else 0.0
