"""The report of a curation: the funnel, the settings, what was chosen."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from s1jax.curation import choice, clean, funnel
from s1jax.curation import plan as plan_lib
from s1jax.curation.plan import Plan
from s1jax.curation.row import Drop, Row
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.io import files

_EXAMPLES = 20  # rows with an evaluation question that the page shows


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
        lines += _leaks(self.leaks)
        lines += _plan(self.plan)
        if self.block:
            lines += ["", "## Block size", "", self.block["sentence"]]
        lines += ["", "## Settings", "", "```json", json.dumps(dataclasses.asdict(self.settings)), "```", ""]
        lines += [f"- {name}: `{json.dumps(values, ensure_ascii=False)}`" for name, values in self.steps.items()]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _leaks(leaks: dict[str, Any]) -> list[str]:
    if not leaks:
        return ["", "## Decontamination", "", "**The rows were not compared with any evaluation set.**"]
    lines = ["", "## Decontamination", "", "| evaluation set | questions | rows that hold one |", "|---|---|---|"]
    lines += [f"| {_cell(one['set'])} | {one['questions']:,} | {one['rows']:,} |" for one in leaks["sets"]]
    if leaks["examples"]:
        lines += [
            "",
            "Some of these rows (all are in dropped.parquet):",
            "",
            "| row | why | evidence |",
            "|---|---|---|",
        ]
        lines += [f"| {_cell(one['row'])} | {one['reason']} | {_cell(one['evidence'])} |" for one in leaks["examples"]]
    return lines


def _plan(plan: Plan | None) -> list[str]:
    if plan is None:
        return []
    lines = [
        "",
        "## What the teacher costs",
        "",
        "| one answer to each of | questions | tokens | dollars |",
        "|---|---|---|---|",
    ]
    for name, cost in plan.costs.items():
        error = f" ± {cost.error / 1e6:,.2f}" if cost.error else ""
        dollars = f"{cost.dollars:,.2f}" if plan.dollars_per_million else ""
        lines.append(f"| {name} | {cost.rows:,} | {cost.tokens / 1e6:,.2f} M{error} | {dollars} |")
    how = f"{plan.known:,} rows of the pool have an answer of a known length."
    if plan.given:
        how += f" The others count with {plan.given:,g} tokens, as given."
    elif any(cost.error for cost in plan.costs.values()):
        how += " The others count with the mean of those with about the same pass rate; ± is a standard error."
    first, last = list(plan.costs.values())[:2]
    saved = 1 - last.tokens / first.tokens if first.tokens else 0.0
    return [*lines, "", f"{how} Applying the rules before the teacher is asked saves {saved:.0%} of its tokens."]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def make(
    sources: Sequence[str],
    settings: Settings,
    steps: Sequence[Step],
    done: Sequence[Stage],
    pool: Sequence[Row],
    asked: Sequence[Row],
    rows: Sequence[Row],
    drops: Sequence[tuple[Row, Drop]],
    notes: Sequence[str],
) -> Report:
    """Makes the report.

    Args:
      sources: of the rows.
      settings: of the curation.
      steps: its rules.
      done: what each did.
      pool: all rows as read, without traces.
      asked: rows that are left by the rules that read nothing that a teacher wrote.
      rows: those that are left.
      drops: all others, with why.
      notes: what was said.
    """
    by_domain = collections.Counter(choice.domain_of(row) for row in rows)
    selection = {"chosen": len(rows), "domains": len(by_domain), "by_domain": dict(sorted(by_domain.items()))}
    return Report(
        tuple(sources), settings, {step.name: dict(step.settings) for step in steps}, tuple(done), selection,
        _leaked(steps, drops), _costs(settings, pool, asked, rows), _block(settings.block_size, rows), tuple(notes),
    )  # fmt: skip


def _leaked(steps: Sequence[Step], drops: Sequence[tuple[Row, Drop]]) -> dict[str, Any]:
    against = next((step.settings["against"] for step in steps if step.name == clean.NAME), None)
    if against is None:
        return {}
    found = [(row, drop) for row, drop in drops if drop.rule == clean.NAME]
    counts = collections.Counter(drop.evidence.partition(", ")[0] for _, drop in found)
    examples = [
        {"row": row.name, "reason": drop.reason, "evidence": drop.evidence}
        for row, drop in sorted(found, key=lambda pair: pair[0].id)[:_EXAMPLES]
    ]
    return {
        "sets": [{"set": name, "questions": number, "rows": counts[name]} for name, number in against.items()],
        "examples": examples,
    }


def _costs(settings: Settings, pool: Sequence[Row], asked: Sequence[Row], rows: Sequence[Row]) -> Plan | None:
    groups = {"all questions": pool, "those left before the teacher is asked": asked, "those chosen": rows}
    return plan_lib.plan(pool, groups, settings.tokens_per_answer, settings.dollars_per_million)


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
