"""The batches of a folder: which requests are in which file, and how far each batch is.

FOLDER/batches.jsonl              the journal: a line before and after each step that cannot be repeated
FOLDER/batches/NAME.jsonl         requests in the form of OpenAI's Batch API; custom_id is the key of the request
FOLDER/batches/NAME.index.jsonl   what the folder needs to know of each request (`Asked`)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.work import Job, Work
from s1jax.io import files
from s1jax.io.journal import Journal, fingerprint, scan
from s1jax.remote.batches import ROUTE
from s1jax.remote.client import Endpoint

BATCHES = "batches.jsonl"
MOST_REQUESTS = 50_000  # in a file, and
MOST_BYTES = 200_000_000  # of a file, by OpenAI's rules
_FORMAT = fingerprint({"journal": "batches of a teacher", "version": 1})

# written: the file is here. uploaded: and there. creating: asked for. created: it has an id. manual: the user carries
# the files. ended: nothing is left to collect.
Step = Literal["written", "uploaded", "creating", "created", "manual", "ended"]


@dataclasses.dataclass
class Known:
    """A batch of the journal.

    Attributes:
      name: of its files.
      step: how far it is.
      requests: number of them.
      file: id of the uploaded file; empty before that.
      id: of the batch, in the endpoint's words; empty before that.
      endpoint: address of the teacher.
    """

    name: str
    step: Step
    requests: int = 0
    file: str = ""
    id: str = ""
    endpoint: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A request in a batch.

    Attributes:
      key: of the request.
      id: of the question.
      answer: which of the question's, counted from 0.
      prompt: most tokens of the prompt.
      max_tokens: that the request allows.
      dollars: worst case.
      lost: earlier tries that may be billed although their answer never arrived.
      endpoint: address of the teacher.
      model: of the teacher, in the endpoint's words.
    """

    key: str
    id: str
    answer: int
    prompt: int
    max_tokens: int
    dollars: float
    lost: int
    endpoint: str
    model: str


class BatchJournal:
    """The batches of a folder, for this process alone.

    Attributes:
      known: by name, oldest first.
    """

    def __init__(self, folder: pathlib.Path):
        """Locks and reads the journal; creates it if there is none.

        Raises:
          UserError: another process writes it, or it is something else.
        """
        self._folder, self.known = folder, dict[str, Known]()
        self._journal = Journal(folder / BATCHES, _FORMAT, lambda _, row: _add(self.known, row))

    def step(self, name: str, step: Step, **fields: Any) -> Known:
        """Writes down how far a batch is."""
        row = {"batch": name, "step": step, **fields}
        self._journal.append(row)
        _add(self.known, row)
        return self.known[name]

    def write(self, jobs: Sequence[Job], endpoint: Endpoint, address: str, settings: DistilSettings) -> str:
        """Writes the two files of a new batch, each whole; returns its name. Nothing is in the journal yet."""
        digest = hashlib.sha256("".join(job.key for job in jobs).encode()).hexdigest()[:8]
        name = f"{len(self.known):05d}-{digest}"
        path(self._folder, name).parent.mkdir(exist_ok=True)
        with files.replace(path(self._folder, name, "index")) as file:
            for job in jobs:
                asked = Asked(
                    job.key, job.question.id, job.answer, job.prompt, settings.max_tokens, job.dollars, job.lost,
                    address, endpoint.model,
                )  # fmt: skip
                file.write(json.dumps(dataclasses.asdict(asked)).encode() + b"\n")
        with files.replace(path(self._folder, name)) as file:
            for job in jobs:
                file.write(line(job, endpoint, settings))
        return name

    def close(self) -> None:
        """Syncs the journal to disk and releases its lock."""
        self._journal.close()


def line(job: Job, endpoint: Endpoint, settings: DistilSettings) -> bytes:
    """Returns the line of a request: the body is that of the same request sent by itself."""
    request = job.request(settings)
    body = endpoint.chat(request.messages, settings.max_tokens, request.sampling)
    row = {"custom_id": job.key, "method": "POST", "url": ROUTE, "body": body}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def path(folder: pathlib.Path, name: str, kind: str = "") -> pathlib.Path:
    """Returns the path of a file of a batch: its requests, or another kind, such as `index` or `output`."""
    return folder / "batches" / (f"{name}.{kind}.jsonl" if kind else f"{name}.jsonl")


def asked(folder: pathlib.Path, name: str) -> dict[str, Asked]:
    """Returns the requests of a batch by their keys."""
    with path(folder, name, "index").open("rb") as file:
        found = (Asked(**json.loads(row)) for row in file)
        return {each.key: each for each in found}


def pending(folder: pathlib.Path) -> dict[str, str]:
    """Returns the keys of the requests whose answers a batch may still bring, with its name; writes nothing.

    Raises:
      UserError: the journal is something else.
    """
    known: dict[str, Known] = {}
    if (folder / BATCHES).exists():
        for _, _, row in scan(folder / BATCHES, _FORMAT):
            _add(known, row)
    return {key: batch.name for batch in known.values() if batch.step != "ended" for key in asked(folder, batch.name)}


def leave(work: Work, folder: pathlib.Path) -> str:
    """Takes requests that are in batches out of the work; returns a sentence about them, or nothing."""
    waiting = pending(folder)
    found = {waiting[job.key] for job in work.jobs if job.key in waiting}
    count = len(work.jobs)
    work.jobs = [job for job in work.jobs if job.key not in waiting]
    if not found:
        return ""
    return (
        f"{count - len(work.jobs):,} requests are in {len(found)} batch{'es' * (len(found) > 1)} whose answers are not"
        " collected, and are not sent here; batch mode collects them."
    )


def _add(known: dict[str, Known], row: Mapping[str, Any]) -> None:
    batch = known.setdefault(row["batch"], Known(row["batch"], row["step"]))
    batch.step = row["step"]
    batch.requests = row.get("requests", batch.requests)
    batch.file, batch.id = row.get("file", batch.file), row.get("id", batch.id)
    batch.endpoint = row.get("endpoint", batch.endpoint)


def chunks(jobs: Sequence[Job], endpoint: Endpoint, settings: DistilSettings, most: int) -> Iterator[list[Job]]:
    """Divides requests into files of at most `most` requests and `MOST_BYTES`."""
    found: list[Job] = []
    size = 0
    for job in jobs:
        own = len(line(job, endpoint, settings))
        if found and (len(found) == most or size + own > MOST_BYTES):
            yield found
            found, size = [], 0
        found.append(job)
        size += own
    if found:
        yield found
