"""The table of an evaluation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from s1jax.cli import terminal
from s1jax.evaluation import metrics as metrics_lib


def show(runs: list[metrics_lib.Run], metrics: Mapping[str, metrics_lib.Metrics], title: str) -> None:
    """Prints the runs and the paper's three figures for each of their curves."""
    table = Table(title=terminal.safe(title))
    table.add_column("run")
    for heading in (
        "accuracy % (95 %)",
        "thinking",
        "answer",
        "all tokens",
        "samples",
        "cut %",
        "Control %",
        "s",
        "USD",
    ):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(
            terminal.safe(run.name), "{:.1f} ({:.1f} to {:.1f})".format(run.accuracy, *run.interval),
            f"{run.thinking_tokens:.1f}", f"{run.answer_tokens:.1f}",
            f"{run.total_tokens:.1f}", f"{run.samples:.3g}", f"{run.cut:.0f}",
            _figure(run.control, ".0f"), f"{run.seconds / run.problems:.3g}", _figure(run.dollars, ".2g"),
        )  # fmt: skip
    undecided = [f"{run.undecided} of {run.problems} in {terminal.safe(run.name)}" for run in runs if run.undecided]
    note = f"undecided answers, counted as not right: {', '.join(undecided)}. " if undecided else ""
    figures = Table(
        caption=f"{note}95 %: Wilson interval of the accuracy; tokens, samples, s (seconds) and USD of a problem;"
        " Control also of the runs' means"
    )
    for heading in ("", "Control %", "of runs %", "Scaling (points per 1,000 tokens)", "Performance %"):
        figures.add_column(heading, justify="right" if heading else "left")
    names = {"all": "all runs", "budgets": "budgets only", "waits": "waits only"}
    for family, values in metrics.items():
        figures.add_row(
            names.get(family, terminal.safe(family)),
            *(
                _figure(value, ".1f")
                for value in (values["control"], values["control_of_runs"], values["scaling"], values["performance"])
            ),
        )
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    console.print(table, figures)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
