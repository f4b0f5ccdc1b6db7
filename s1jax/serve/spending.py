"""The money that hand-offs may spend: caps that are never passed, and the audit file that remembers them.

The worst case of a request is reserved before it is sent, and becomes what it cost when its answer is there. Both are
lines of the audit file, which holds no text of a prompt. A server that starts again reads what the day has cost so far;
a request that was sent and never settled counts with its worst case. Days are those of UTC.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from s1jax.errors import UserError
from s1jax.io import files

_SLACK = 1e-12  # USD, of rounding


@dataclasses.dataclass(frozen=True)
class Caps:
    """Most that hand-offs may cost, in USD.

    Attributes:
      request: one request, its repetitions included.
      day: all requests of a day.
      key: those of one API key in a day.
    """

    request: float
    day: float
    key: float = math.inf


@dataclasses.dataclass(frozen=True)
class Hold:
    """Money that is reserved for one request.

    Attributes:
      id: of the request in the audit file.
      key: label of the API key.
      day: of the reservation.
      usd: the worst case.
    """

    id: str
    key: str
    day: str
    usd: float


class Spending:
    """What hand-offs have cost and may cost yet; safe to use from any thread.

    Attributes:
      overrun: a sentence once a request has cost more than its worst case, or its cost could not be written down;
        nothing is reserved afterwards.
    """

    def __init__(self, caps: Caps, audit: str | os.PathLike[str], clock: Callable[[], float] = time.time):
        """Opens the audit file for this process alone, and reads what today has cost.

        Args:
          caps: see `Caps`.
          audit: a file of JSON lines; made if there is none.
          clock: seconds since 1970.

        Raises:
          UserError: another process has the file, it may not be written, or it is something else.
        """
        self._caps, self._clock, self._lock = caps, clock, threading.Lock()
        self._path = audit
        try:
            self._file = files.append(audit)
        except OSError as error:
            reason = "is a link" if error.errno == errno.ELOOP else error.strerror
            raise UserError(f"the audit file {audit} cannot be written ({reason}); name another.") from None
        if not files.take(self._file):
            self._file.close()
            raise UserError(f"another server writes the audit file {audit}; give each its own, with its own caps.")
        self._day = self._today()
        self._total, self._keys = 0.0, dict[str, float]()
        self.overrun = ""
        try:
            self._remember()
        except UserError:
            self._file.close()
            raise

    def reserve(self, usd: float, key: str, about: Mapping[str, Any]) -> Hold | str:
        """Sets money aside for a request that is about to be sent.

        Args:
          usd: the most that it can cost, repetitions included.
          key: label of the API key; empty: there is none.
          about: more values for the line of the audit file.

        Returns:
          The reservation; or the name of the cap that it would pass: `cap_request`, `cap_day` or `cap_key`; `overrun`
          where an earlier request has cost more than its worst case.
        """
        with self._lock:
            day = self._turn()
            if self.overrun:
                return "overrun"
            if not usd <= self._caps.request + _SLACK:
                return "cap_request"
            if self._total + usd > self._caps.day + _SLACK:
                return "cap_day"
            if self._keys.get(key, 0.0) + usd > self._caps.key + _SLACK:
                return "cap_key"
            hold = Hold(f"handoff-{secrets.token_hex(12)}", key, day, usd)
            self._write({"event": "sent", "id": hold.id, "day": day, "key": key, "reserved_usd": usd, **about})
            self._add(key, usd)
            return hold

    def settle(self, hold: Hold, usd: float, about: Mapping[str, Any]) -> None:
        """Replaces a reservation with what the request cost.

        Args:
          hold: the reservation.
          usd: the cost.
          about: more values for the line of the audit file.
        """
        with self._lock:
            self._turn()
            if usd > hold.usd + _SLACK:
                self.overrun = (
                    f"a hand-off cost {usd:.6g} USD where at most {hold.usd:.6g} were expected; correct price and"
                    " max_tokens, and start the server again"
                )
            if hold.day == self._day:
                self._add(hold.key, usd - hold.usd)
            try:
                self._write({"event": "done", "id": hold.id, "day": hold.day, "key": hold.key, "usd": usd, **about})
            except OSError as error:
                self.overrun = f"the audit file {self._path} cannot be written ({error.strerror})"

    def today(self, key: str | None = None) -> float:
        """Returns what today has cost in USD, reservations included; of one API key, if its label is given."""
        with self._lock:
            self._turn()
            return self._total if key is None else self._keys.get(key, 0.0)

    def close(self) -> None:
        """Closes the audit file."""
        self._file.close()

    def _add(self, key: str, usd: float) -> None:
        self._total = max(self._total + usd, 0.0)
        self._keys[key] = max(self._keys.get(key, 0.0) + usd, 0.0)

    def _today(self) -> str:
        return datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).date().isoformat()

    def _turn(self) -> str:
        """Begins a new day where it is time; a clock that was set back does not repeat one."""
        if (today := self._today()) > self._day:
            self._day, self._total = today, 0.0
            self._keys.clear()
        return self._day

    def _write(self, line: Mapping[str, Any]) -> None:
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(timespec="milliseconds")
        with files.named(self._path):
            self._file.write(json.dumps({"time": now, **line}).encode() + b"\n")
            self._file.flush()

    def _remember(self) -> None:
        foreign = UserError(f"{self._path} is not an audit file of hand-offs; name another.")
        open_holds: dict[str, tuple[str, float]] = {}
        with open(self._path, "rb") as stream:
            lines = stream.read().split(b"\n")
        if lines[-1]:  # of a process that was killed while it wrote
            self._file.write(b"\n")
        for place, line in enumerate(lines):
            if not line:
                continue
            try:
                row = json.loads(line)
                event, id_, day, key = row["event"], row["id"], row["day"], str(row["key"])
                usd = float(row["reserved_usd" if event == "sent" else "usd"])
            except (ValueError, KeyError, TypeError):
                if place == len(lines) - 1 or b'"event"' in line:  # torn
                    continue
                raise foreign from None
            if event == "sent" and day == self._day:
                open_holds[id_] = (key, usd)
            elif event == "done":
                open_holds.pop(id_, None)
                if day == self._day:
                    self._add(key, usd)
        for key, usd in open_holds.values():
            self._add(key, usd)
