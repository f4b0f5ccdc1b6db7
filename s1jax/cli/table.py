"""The table of an evaluation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from s1jax.cli import terminal
from s1jax.evaluation.handoff import Study
from s1jax.evaluation.metrics import Metrics, Run

_FAMILIES = {"all": "all runs", "budgets": "budgets only", "waits": "waits only"}


def show(runs: Sequence[Run], metrics: Mapping[str, Metrics], title: str) -> None:
    """Prints the runs, then the paper's figures for each of their curves; columns without a figure are left out."""
    lines = [
        {
            "run": terminal.safe(run.name),
            "accuracy\n% (95 %)": "{:.1f} ({:.1f} to {:.1f})".format(run.accuracy, *run.interval),
            "thinking\ntokens": f"{run.thinking_tokens:.1f}",
            "answer\ntokens": f"{run.answer_tokens:.1f}",
            "all\ntokens": f"{run.total_tokens:.1f}",
            "samples": f"{run.samples:.3g}",
            "cut\n%": f"{run.cut:.0f}",
            "Control\n%": _figure(run.control, ".0f"),
            "time\ns": f"{run.seconds / run.problems:.3g}",
            "cost\nUSD": _figure(run.dollars, ".2g"),
        }
        for run in runs
    ]
    figures = [
        {
            "runs": _FAMILIES.get(family, terminal.safe(family)),
            "Control\n% of problems": _figure(values["control"], ".1f"),
            "Control\n% of runs": _figure(values["control_of_runs"], ".1f"),
            "Scaling\npoints per 1,000 tokens": _figure(values["scaling"], ".1f"),
            "Performance\n%": _figure(values["performance"], ".1f"),
        }
        for family, values in metrics.items()
    ]
    undecided = [f"{run.undecided} of {run.problems} in {terminal.safe(run.name)}" for run in runs if run.undecided]
    note = f"undecided answers, counted as not right: {', '.join(undecided)}. " if undecided else ""
    _print(lines, title=terminal.safe(title))
    _print(figures)
    print(f"{note}95 %: Wilson interval of the accuracy. Tokens, samples, time and cost are means of a problem.")


def show_handoffs(studies: Sequence[Study]) -> None:
    """Prints, for each local strategy, how well its scores choose what goes to the remote."""
    lines = []
    for study in studies:
        half = study.at(0.5)
        for name in study.scores:
            quality = study.quality(name)
            own = name == study.score
            lines.append(
                {
                    "local": terminal.safe(study.local.name),
                    "score": name + (" *" if own else ""),
                    "AUROC": f"{quality.auroc:.3f} ± {quality.auroc_error:.3f}",
                    "APGR": f"{quality.apgr:.3f} ± {quality.apgr_error:.3f}",
                    "half\nhanded off %": f"{half['accuracy']:.1f}" if own else "-",
                    "at\nrandom %": f"{half['random']:.1f}" if own else "-",
                    "at\nbest %": f"{half['oracle']:.1f}" if own else "-",
                    "cost\nUSD": f"{half['dollars']:.2g}" if own and half["dollars"] else "-",
                }
            )
    remote = studies[0].remote
    _print(lines, title=terminal.safe(f"hand-off to {remote.name}"))
    dollars = f", {remote.dollars.mean():.2g} USD a problem" if remote.dollars.any() else ""
    print(
        f"The remote alone: {100 * remote.right.mean():.1f} %{dollars}. *: this score hands off. ±: one standard error."
        " A fit scores problems that it was not fitted to. At best: who knows all verdicts."
    )


def _print(lines: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Prints a table of the columns that have a figure; the first column holds names."""
    table = Table(title=title)
    names = [name for name in lines[0] if any(line[name] != "-" for line in lines)]
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i))
    for line in lines:
        table.add_row(*(line[name] for name in names))
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
