"""The report of a curation: the funnel, the settings, what was chosen."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from s1jax.curation import choice, funnel
from s1jax.curation.row import Drop, Row
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.io import files


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
      block: rows that are longer than a block, if lengths are known.
      notes: what was ignored, guessed or left out.
    """

    sources: tuple[str, ...]
    settings: Settings
    steps: dict[str, dict[str, Any]]
    stages: tuple[Stage, ...]
    selection: dict[str, Any]
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
            "block": self.block,
            "notes": list(self.notes),
        }

    def write(self, out: pathlib.Path) -> None:
        """Writes report.json, report.md and, with matplotlib, funnel.png."""
        picture = funnel.write(self.counts, f"{self.settings.preset}: rows after each rule", out / "funnel.png")
        files.write_text(out / "report.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        files.write_text(out / "report.md", self.markdown(picture))

    def markdown(self, picture: bool) -> str:
        """Returns the report as a page."""
        lines = [f"# Curation with the preset `{self.settings.preset}`", ""]
        lines += [f"Rows: {', '.join(f'`{source}`' for source in self.sources)}.", ""]
        lines += ["| rule | rows before | dropped | rows after | why |", "|---|---|---|---|---|"]
        for stage in self.stages:
            why = "; ".join(f"{_cell(reason)}: {count:,}" for reason, count in stage.reasons.items())
            lines.append(f"| {stage.name} | {stage.given:,} | {stage.dropped:,} | {stage.kept:,} | {why} |")
        if picture:
            lines += ["", "![rows after each rule](funnel.png)"]
        if self.selection:
            lines += ["", "## Selection", ""]
            lines += [
                f"- {name.replace('_', ' ')}: {value:,}"
                for name, value in self.selection.items()
                if name != "by_domain"
            ]
            lines += ["", "| domain | chosen |", "|---|---|"]
            lines += [f"| {_cell(domain)} | {count:,} |" for domain, count in self.selection["by_domain"].items()]
        if self.block:
            lines += ["", "## Block size", "", self.block["sentence"]]
        lines += ["", "## Settings", "", "```json", json.dumps(dataclasses.asdict(self.settings)), "```", ""]
        lines += [f"- {name}: `{json.dumps(values, ensure_ascii=False)}`" for name, values in self.steps.items()]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def make(
    sources: Sequence[str],
    settings: Settings,
    steps: Sequence[Step],
    done: Sequence[Stage],
    pool: Sequence[Row],
    rows: Sequence[Row],
    notes: Sequence[str],
) -> Report:
    """Makes the report.

    Args:
      sources: of the rows.
      settings: of the curation.
      steps: its rules.
      done: what each did.
      pool: all rows as read, without traces.
      rows: those that are left.
      notes: what was said.
    """
    by_domain = collections.Counter(choice.domain_of(row) for row in rows)
    selection = {"chosen": len(rows), "domains": len(by_domain), "by_domain": dict(sorted(by_domain.items()))}
    return Report(
        tuple(sources), settings, {step.name: dict(step.settings) for step in steps}, tuple(done), selection,
        _block(settings.block_size, rows), tuple(notes),
    )  # fmt: skip


def _block(size: int, rows: Sequence[Row]) -> dict[str, Any]:
    """The share of rows whose trace alone is longer than a block of a training run."""
    known = [float(row.columns["trace_tokens"]) for row in rows if row.columns.get("trace_tokens") is not None]
    if not size or not known:
        return {}
    longer = sum(tokens > size for tokens in known)
    share = longer / len(known)
    sentence = (
        f"{longer:,} of {len(known):,} rows ({share:.1%}) have a trace of more than {size:,} tokens: such rows do not"
        " fit a block of that size. Question and answer are not counted."
    )
    return {"block_size": size, "known": len(known), "longer": longer, "share": share, "sentence": sentence}
