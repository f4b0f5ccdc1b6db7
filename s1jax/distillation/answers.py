"""The answers of a folder: `answers.jsonl`, with one line for every request that was paid for or has failed.

A line says all about its request (`Answer`), so that a folder may hold answers of several teachers and settings. It is
found by the key of the request. Texts stay on disk; memory holds where they are.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from s1jax.distillation.states import State
from s1jax.io.journal import Journal, damaged, fingerprint, scan
from s1jax.remote.reply import Completion

ANSWERS = "answers.jsonl"
FORMAT = fingerprint({"journal": "answers of a teacher", "version": 1})
_RANK = {"failed": 0, "refused": 1, "cut": 2, "done": 3}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request: a line of `answers.jsonl`.

    Attributes:
      key: of the request.
      id: of the question.
      answer: which of the question's, counted from 0.
      state: see `s1jax.distillation.states`.
      content: text after the thinking.
      reasoning: text of the thinking.
      finish_reason: in the endpoint's words.
      usage: with the names of `s1jax.remote.reply.Usage`; empty where the endpoint does not say.
      dollars: that this answer cost; None: unknown.
      attempts: tries of the request so far, in all runs.
      lost: those of them that may be billed although their answer never arrived.
      max_tokens: that the request allowed.
      endpoint: address of the teacher.
      model: of the teacher, as it was asked for.
      replied: the model that answered, in the endpoint's words.
      completion: id of the completion, in the endpoint's words.
      seconds: from the request to the answer.
      send: id of the request in `sent.jsonl`; empty where that counts it as possible spend.
      error: why it failed or was refused.
      final: of a failure: another try would fail again.
    """

    key: str
    id: str
    answer: int
    state: State
    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    usage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dollars: float | None = 0.0
    attempts: int = 0
    lost: int = 0
    max_tokens: int = 0
    endpoint: str = ""
    model: str = ""
    replied: str = ""
    completion: str = ""
    seconds: float = 0.0
    send: str = ""
    error: str = ""
    final: bool = False

    def with_completion(self, found: Completion) -> Answer:
        """Returns the answer with the texts and counts of a completion."""
        return dataclasses.replace(
            self,
            content=found.content,
            reasoning=found.reasoning,
            finish_reason=found.finish_reason,
            usage=dataclasses.asdict(found.usage) if found.usage else {},
            replied=found.model,
            completion=found.id,
            seconds=round(found.seconds, 3),
        )


@dataclasses.dataclass(slots=True)
class Entry:
    """What memory holds of the best answer to a request.

    Attributes:
      begin: first byte of its line.
      state: see `Answer`, as for the fields below.
      attempts: of all lines of the request.
      lost: of all lines of the request.
      max_tokens: of the best line.
      thinks: whether it has thinking.
      prompt_tokens: 0 where the endpoint does not say.
      completion_tokens: likewise.
      dollars: of the best line.
      final: whether another try would fail again.
    """

    begin: int
    state: State
    attempts: int
    lost: int
    max_tokens: int
    thinks: bool
    prompt_tokens: int
    completion_tokens: int
    dollars: float
    final: bool


@dataclasses.dataclass
class Totals:
    """What all lines of a folder sum to.

    Attributes:
      lines: number of them.
      prompt_tokens: as billed.
      completion_tokens: as billed, thinking included.
      dollars: that are known.
    """

    lines: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a line."""
        usage = row["usage"]
        self.lines += 1
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)
        self.dollars += row["dollars"] or 0.0


class Index:
    """Finds the answers of a folder by the keys of their requests, without opening it for writing.

    Attributes:
      entries: by key.
      totals: of all lines.
      sends: ids of the requests that have a line.
      unpriced: of those whose cost is unknown, prompt and completion tokens; None where these are unknown, too.
    """

    def __init__(self, folder: pathlib.Path):
        """Knows no line yet; see `read` and `Answers`."""
        self.path = folder / ANSWERS
        self.entries: dict[str, Entry] = {}
        self.totals = Totals()
        self.sends: set[str] = set()
        self.unpriced: dict[str, tuple[int, int] | None] = {}

    def read(self) -> Index:
        """Reads the file, if there is one, whoever may be writing it, and returns itself.

        Raises:
          UserError: it is something else.
        """
        if self.path.exists():
            for begin, _, row in scan(self.path, FORMAT):
                try:
                    self.add(begin, row)
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise damaged(self.path, begin) from None
        return self

    def add(self, begin: int, row: Mapping[str, Any]) -> None:
        """Notes a line that begins at a byte. The best answer to a request counts, the newest of equally good ones."""
        usage, before = row["usage"], self.entries.get(row["key"])
        if row["state"] not in _RANK:
            raise ValueError(f"the state of a line is {row['state']}")
        self.totals.add(row)
        if row["send"]:
            self.sends.add(row["send"])
            if row["dollars"] is None:
                known = (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
                self.unpriced[row["send"]] = known
        entry = Entry(
            begin=begin,
            state=row["state"],
            attempts=row["attempts"],
            lost=row["lost"],
            max_tokens=row["max_tokens"],
            thinks=bool(row["reasoning"].strip()),
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            dollars=row["dollars"] or 0.0,
            final=row["final"],
        )
        if before is not None and _RANK[before.state] > _RANK[entry.state]:
            before.attempts, before.lost = entry.attempts, entry.lost
        else:
            self.entries[row["key"]] = entry

    def texts(self, keys: Iterator[str]) -> Iterator[dict[str, Any]]:
        """Yields the lines of requests that have one, see `Answer`."""
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self.entries[key].begin)
                yield json.loads(file.readline())


class Answers(Index):
    """The answers of a folder, opened for writing by this process alone; a context manager."""

    def __init__(self, folder: pathlib.Path):
        """Locks and reads the file; creates it if there is none.

        Raises:
          UserError: another process writes it, or it is something else.
        """
        super().__init__(folder)
        self._journal = Journal(self.path, FORMAT, self.add)

    def append(self, answer: Answer) -> None:
        """Writes a line, which then survives the end of the process."""
        row = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
        self.add(self._journal.append(row), row)

    def close(self) -> None:
        """Syncs the file to disk and releases its lock."""
        self._journal.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
