"""The report of a curation: the funnel, the settings, what was chosen."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from s1jax.curation import choice, clean, funnel, page
from s1jax.curation import plan as plan_lib
from s1jax.curation.plan import Plan, Tally, tally
from s1jax.curation.row import Drop, Row
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.io import files

EXAMPLES = 20  # rows with an evaluation question that the page shows


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one rule did.

    Attributes:
      name: of the rule.
      file: of its stage.
      given: rows before it.
      reasons: reason -> rows that it dropped.
    """

    name: str
    file: pathlib.Path
    given: int
    reasons: dict[str, int]

    @staticmethod
    def of(name: str, file: pathlib.Path, given: int, drops: Sequence[Drop]) -> Stage:
        """Counts the reasons of drops."""
        counts = collections.Counter(drop.reason for drop in drops)
        return Stage(name, file, given, dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))))

    @property
    def dropped(self) -> int:
        """Rows that it dropped."""
        return sum(self.reasons.values())

    @property
    def kept(self) -> int:
        """Rows after it."""
        return self.given - self.dropped


@dataclasses.dataclass(frozen=True)
class Report:
    """What a curation did.

    Attributes:
      sources: of the rows.
      settings: of the curation.
      steps: name -> settings of its rules.
      stages: what each did.
      selection: domains and counts of the chosen rows.
      leaks: evaluation sets with the number of their questions and of rows that hold one, and some of these rows.
      plan: what a teacher costs, if it is known.
      block: rows that are longer than a block, if lengths are known.
      notes: what was ignored, guessed or left out.
    """

    sources: tuple[str, ...]
    settings: Settings
    steps: dict[str, dict[str, Any]]
    stages: tuple[Stage, ...]
    selection: dict[str, Any]
    leaks: dict[str, Any]
    plan: Plan | None
    block: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def counts(self) -> list[tuple[str, int]]:
        """(stage, rows after it), the pool first."""
        return [("pool", self.stages[0].given), *((stage.name, stage.kept) for stage in self.stages)]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "sources": list(self.sources),
            "settings": dataclasses.asdict(self.settings),
            "steps": self.steps,
            "funnel": [
                {"rule": s.name, "given": s.given, "dropped": s.dropped, "kept": s.kept, "reasons": s.reasons}
                for s in self.stages
            ],
            "selection": self.selection,
            "decontamination": self.leaks,
            "plan": dataclasses.asdict(self.plan) if self.plan else None,
            "block": self.block,
            "notes": list(self.notes),
        }

    def write(self, out: pathlib.Path) -> None:
        """Writes report.json, report.md and, with matplotlib, funnel.png."""
        picture = funnel.write(self.counts, f"{self.settings.preset}: rows after each rule", out / "funnel.png")
        files.write_text(out / "report.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        files.write_text(out / "report.md", page.markdown(self, picture))


GROUPS = ("all questions", "those left before the teacher is asked", "those chosen")


@dataclasses.dataclass(frozen=True)
class Counted:
    """What a run counts for its report, wherever it ran.

    Attributes:
      stages: what each rule did.
      domains: of the chosen rows -> their number.
      leaks: evaluation set -> rows that hold one of its questions.
      examples: some of these rows and why they were dropped, in the order of their ids.
      tallies: lengths of the answers of the rows of each of `GROUPS`.
      measured: chosen rows with a known number of trace tokens.
      longer: those of more tokens than the block of the settings.
    """

    stages: Sequence[Stage]
    domains: Mapping[str, int]
    leaks: Mapping[str, int]
    examples: Sequence[tuple[Row, Drop]]
    tallies: Sequence[Tally]
    measured: int
    longer: int


def count(
    stages: Sequence[Stage],
    block_size: int,
    pool: Sequence[Row],
    asked: Sequence[Row],
    rows: Sequence[Row],
    drops: Sequence[tuple[Row, Drop]],
) -> Counted:
    """Counts what a run in one process did.

    Args:
      stages: what each rule did.
      block_size: of a training run.
      pool: all rows as read, without traces.
      asked: rows that are left by the rules that read nothing that a teacher wrote.
      rows: those that are left in the end.
      drops: all others, with why.
    """
    leaks = sorted(((row, drop) for row, drop in drops if drop.rule == clean.NAME), key=lambda pair: pair[0].id)
    known = [tokens for row in rows if (tokens := row.columns.get("trace_tokens")) is not None]
    return Counted(
        stages, collections.Counter(map(choice.domain_of, rows)),
        collections.Counter(set_of(drop) for _, drop in leaks), leaks[:EXAMPLES],
        [tally(pool), tally(asked), tally(rows)], len(known), sum(float(tokens) > block_size for tokens in known),
    )  # fmt: skip


def set_of(drop: Drop) -> str:
    """Returns the evaluation set that the evidence of a drop names."""
    return drop.evidence.partition(", ")[0]


def make(
    sources: Sequence[str], settings: Settings, steps: Sequence[Step], counted: Counted, notes: Sequence[str]
) -> Report:
    """Makes the report of a curation.

    Args:
      sources: of the rows.
      settings: of the curation.
      steps: its rules.
      counted: what they did.
      notes: what was said.
    """
    domains = dict(sorted(counted.domains.items()))
    selection = {"chosen": sum(domains.values()), "domains": len(domains), "by_domain": domains}
    plan = plan_lib.plan(
        counted.tallies[0], dict(zip(GROUPS, counted.tallies, strict=True)), settings.tokens_per_answer,
        settings.dollars_per_million,
    )  # fmt: skip
    return Report(
        tuple(sources), settings, {step.name: dict(step.settings) for step in steps}, tuple(counted.stages), selection,
        _leaked(steps, counted), plan, _block(settings.block_size, counted.measured, counted.longer), tuple(notes),
    )  # fmt: skip


def _leaked(steps: Sequence[Step], counted: Counted) -> dict[str, Any]:
    against = next((step.settings["against"] for step in steps if isinstance(step.row, clean.Clean)), None)
    if against is None:
        return {}
    examples = [{"row": row.name, "reason": drop.reason, "evidence": drop.evidence} for row, drop in counted.examples]
    sets = [{"set": name, "questions": n, "rows": counted.leaks.get(name, 0)} for name, n in against.items()]
    return {"sets": sets, "examples": examples}


def _block(size: int, known: int, longer: int) -> dict[str, Any]:
    """The share of rows whose trace alone is longer than a block of a training run."""
    if not size or not known:
        return {}
    sentence = (
        f"{longer:,} of {known:,} rows ({longer / known:.1%}) have a trace of more than {size:,} tokens: they do not"
        " fit a block of that size. Question and answer are not counted."
    )
    return {"block_size": size, "known": known, "longer": longer, "share": longer / known, "sentence": sentence}
