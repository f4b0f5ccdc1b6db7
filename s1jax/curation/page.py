"""Writes the report of a curation as a page."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from s1jax.curation.plan import Plan

if TYPE_CHECKING:
    from s1jax.curation.report import Report


def markdown(report: Report, picture: bool) -> str:
    """Returns the report as a page."""
    lines = [f"# Curation with the preset `{report.settings.preset}`", ""]
    lines += [f"Rows: {', '.join(f'`{source}`' for source in report.sources)}.", ""]
    lines += ["| rule | rows before | dropped | rows after | why |", "|---|---|---|---|---|"]
    for stage in report.stages:
        why = "; ".join(f"{_cell(reason)}: {count:,}" for reason, count in stage.reasons.items())
        lines.append(f"| {stage.name} | {stage.given:,} | {stage.dropped:,} | {stage.kept:,} | {why} |")
    if picture:
        lines += ["", "![rows after each rule](funnel.png)"]
    if report.selection:
        lines += ["", "## Selection", ""]
        lines += [
            f"- {name.replace('_', ' ')}: {value:,}" for name, value in report.selection.items() if name != "by_domain"
        ]
        lines += ["", "| domain | chosen |", "|---|---|"]
        lines += [f"| {_cell(domain)} | {count:,} |" for domain, count in report.selection["by_domain"].items()]
    lines += _leaks(report.leaks)
    lines += _plan(report.plan)
    if report.block:
        lines += ["", "## Block size", "", report.block["sentence"]]
    lines += ["", "## Settings", "", "```json", json.dumps(dataclasses.asdict(report.settings)), "```", ""]
    lines += [f"- {name}: `{json.dumps(values, ensure_ascii=False)}`" for name, values in report.steps.items()]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in report.notes)]
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
        error = f" ± {cost.error:,.0f}" if cost.error else ""
        dollars = f"{cost.dollars:,.2f}" if plan.dollars_per_million else ""
        lines.append(f"| {name} | {cost.rows:,} | {cost.tokens:,.0f}{error} | {dollars} |")
    how = f"{plan.known:,} rows of the pool have an answer of a known length."
    if plan.given:
        how += f" The others count with {plan.given:,g} tokens, as given."
    elif any(cost.error for cost in plan.costs.values()):
        how += " The others count with the mean of those with about the same pass rate; ± is a standard error."
    return [*lines, "", f"{how} Applying the rules before the teacher is asked saves {plan.saved:.0%} of its tokens."]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
