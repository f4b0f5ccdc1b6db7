"""What the requests of a command will take: tokens and dollars, at most and as expected."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator

from s1jax.distillation.answers import Entry, Index
from s1jax.distillation.settings import DistilSettings
from s1jax.distillation.work import Work

_BYTES_PER_TOKEN = 4  # of English text, where no answer says how many tokens its prompt had


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked, and what that takes.

    Attributes:
      questions: number of them.
      answers: of every question.
      kept: number of answers that the folder has and that are not asked for again.
      requests: that are sent.
      prompt_tokens: of them, as expected.
      most_prompt_tokens: of them, at most.
      output_tokens: of their answers, as expected; None: nothing is known yet.
      error: standard error of that; None where the user gave the mean.
      samples: answers that the expectation is made of; 0 where the user gave it.
      most_output_tokens: of their answers, at most.
      dollars: as expected; None: unknown.
      most_dollars: without repetitions after lost answers; None: there is no price.
      spent: USD that the folder has cost so far.
      possible: USD of requests of earlier runs whose answer never arrived.
    """

    questions: int
    answers: int
    kept: int
    requests: int
    prompt_tokens: float
    most_prompt_tokens: int
    output_tokens: float | None
    error: float | None
    samples: int
    most_output_tokens: int
    dollars: float | None
    most_dollars: float | None
    spent: float
    possible: float

    def lines(self) -> list[str]:
        """Returns the plan as lines for a person."""
        each = f" x {self.answers} answers" if self.answers > 1 else ""
        found = [
            f"{self.questions:,} questions{each}: {self.requests:,} requests"
            + (f", {self.kept:,} are in the folder already" if self.kept else "")
        ]
        if self.requests:
            found += self._amounts()
        if self.spent or self.possible:
            more = f", and at most {_money(self.possible)} for answers that never arrived" if self.possible else ""
            found.append(f"dollars so far: {_money(self.spent)}{more}")
        return found

    def _amounts(self) -> list[str]:
        found = [
            f"prompt tokens: about {self.prompt_tokens:,.0f}, at most {self.most_prompt_tokens:,}",
        ]
        if self.output_tokens is None:
            expected = "not known before the first answers (expected_tokens says it)"
        else:
            error = "" if self.error is None else f" +- {self.error:,.0f}"
            basis = f" by {self.samples:,} answers" if self.samples else ""
            expected = f"about {self.output_tokens:,.0f}{error}{basis}"
        found.append(f"output tokens: {expected}, at most {self.most_output_tokens:,}")
        if self.most_dollars is not None or self.dollars is not None:
            most = "" if self.most_dollars is None else f", at most {_money(self.most_dollars)}"
            about = "not known" if self.dollars is None else f"about {_money(self.dollars)}"
            found.append(f"dollars: {about}{most}")
        return found


def _by_question(work: Work, index: Index, answers: int) -> Iterator[list[int]]:
    """Yields the lengths of the known answers to each question that has some."""
    for begin in range(0, len(work.keys), answers):
        entries = (index.entries.get(key) for key in work.keys[begin : begin + answers])
        known = [each.completion_tokens for each in entries if each is not None and _counts(each)]
        if known:
            yield known


def _counts(entry: Entry) -> bool:
    """Whether an answer says something about the length of others."""
    return bool(entry.completion_tokens) and entry.state in ("done", "cut")


def _money(dollars: float) -> str:
    return f"{dollars:,.2f}" if dollars >= 1 else f"{dollars:.4f}"


def make(questions: int, work: Work, index: Index, settings: DistilSettings, spent: float, possible: float) -> Plan:
    """Returns the plan of a command.

    Args:
      questions: number of them.
      work: requests, see `s1jax.distillation.work`.
      index: of the answers that the folder has.
      settings: see `DistilSettings`.
      spent: USD that the folder has cost so far.
      possible: USD of requests of earlier runs whose answer never arrived.
    """
    known = [entry for entry in work.entries(index) if _counts(entry)]
    outputs = [entry.completion_tokens for entry in known]
    count, bound = len(work.jobs), sum(job.prompt for job in work.jobs)
    text = sum(job.prompt - settings.prompt_overhead for job in work.jobs)
    prompts = [entry.prompt_tokens for entry in known if entry.prompt_tokens]
    prompt_tokens = count * sum(prompts) / len(prompts) if prompts else text / _BYTES_PER_TOKEN
    mean, error = settings.expected_tokens or None, None
    if mean is None and outputs:
        mean = sum(outputs) / len(outputs)
        # Answers to one question are alike, so the error is that of a mean over questions.
        means = [sum(each) / len(each) for each in _by_question(work, index, settings.answers)]
        if len(means) > 1:
            error = count * statistics.stdev(means) / math.sqrt(len(means))
    price, dollars = settings.price, None
    if price is not None and mean is not None:
        dollars = price.of(0, 1) * count * mean + price.of(1, 0) * prompt_tokens
    elif price is None and any(entry.dollars for entry in known):
        dollars = count * sum(entry.dollars for entry in known) / len(known)
    return Plan(
        questions=questions,
        answers=settings.answers,
        kept=work.kept.total(),
        requests=count,
        prompt_tokens=prompt_tokens,
        most_prompt_tokens=bound,
        output_tokens=None if mean is None else count * mean,
        error=error,
        samples=0 if settings.expected_tokens else len(outputs),
        most_output_tokens=count * settings.max_tokens,
        dollars=dollars,
        most_dollars=sum(job.dollars for job in work.jobs) if price is not None else None,
        spent=spent,
        possible=possible,
    )
