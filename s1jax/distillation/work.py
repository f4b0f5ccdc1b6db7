"""Which requests a folder still lacks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterator, Sequence

from s1jax.distillation.answers import Entry, Index
from s1jax.distillation.questions import Question
from s1jax.distillation.request import Request
from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.spending import prompt_bound, worst
from s1jax.distillation.teacher import Teacher


@dataclasses.dataclass(slots=True, eq=False)
class Job:
    """A request that is to be sent.

    Attributes:
      question: that is asked.
      answer: which of its answers, counted from 0.
      key: of the request.
      prompt: most tokens of the prompt.
      dollars: worst case.
      attempts: tries so far, in all runs.
      last: tries after which it has failed for good.
      lost: tries that may be billed although their answer never arrived.
    """

    question: Question
    answer: int
    key: str
    prompt: int
    dollars: float
    attempts: int = 0
    last: int = 0
    lost: int = 0

    def request(self, settings: DistilSettings) -> Request:
        """Returns what is asked."""
        return self.question.request(settings, self.answer)


@dataclasses.dataclass
class Work:
    """The requests of a command, and which of them its folder has answers to.

    Attributes:
      keys: of all requests, question by question, answer by answer.
      jobs: requests that are to be sent.
      kept: number of requests that are not sent, because the folder knows what becomes of them, by state.
      larger: of them, those that `retry_cut` would ask for again.
    """

    keys: list[str]
    jobs: list[Job]
    kept: collections.Counter[str]
    larger: int

    def entries(self, index: Index) -> Iterator[Entry]:
        """Yields what the folder has of these requests."""
        return (index.entries[key] for key in self.keys if key in index.entries)


def find(
    questions: Sequence[Question], teacher: Teacher, settings: DistilSettings, index: Index, lost: Collection[str] = ()
) -> Work:
    """Returns the requests for all answers of all questions.

    Args:
      questions: each once.
      teacher: whose answers count.
      settings: see `DistilSettings`.
      index: of the folder.
      lost: keys of requests of earlier runs whose answer never arrived, one for each.
    """
    found = Work([], [], collections.Counter(), 0)
    gone = collections.Counter(lost)
    for question in questions:
        bound = prompt_bound(question.request(settings, 0).messages, settings.prompt_overhead)
        dollars = worst(settings.price, bound, settings.max_tokens)
        for answer in range(settings.answers):
            key = question.request(settings, answer).key(teacher.address, teacher.model)
            found.keys.append(key)
            entry = index.entries.get(key)
            if entry is not None and not _again(entry, settings):
                found.kept[entry.state] += 1
                found.larger += entry.state == "cut" and settings.max_tokens > entry.max_tokens
                continue
            attempts = entry.attempts if entry else 0
            before = attempts if entry and entry.state == "failed" and not settings.retry_failed else 0
            last = attempts - before + settings.max_attempts
            found.jobs.append(Job(question, answer, key, bound, dollars, attempts, last, gone[key]))
    return found


def _again(entry: Entry, settings: DistilSettings) -> bool:
    """Whether a request that has a line is sent again."""
    if entry.state == "cut":
        return settings.retry_cut and settings.max_tokens > entry.max_tokens
    if entry.state == "failed":
        return settings.retry_failed or (not entry.final and entry.attempts < settings.max_attempts)
    return entry.state == "refused" and settings.retry_failed
