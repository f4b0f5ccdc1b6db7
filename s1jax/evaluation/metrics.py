"""The paper's three figures of test-time scaling, Control, Scaling and Performance, and the curve they describe.

A *run* is one setting of the controls (thinking cut at 32 tokens, say, or "Wait" twice) over the same problems. Scales:
accuracies are percentages, Control is a percentage of rows, Scaling is percentage points of accuracy gained per
1,000 thinking tokens. Source: "s1: Simple test-time scaling" (arXiv 2501.19393), section 3.2.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.io import files

# Of the curves of a plot, in order: waits, budgets, then what else there is. Their numbers have no common divisor, so
# that pairs of both do not come again before the 57th curve.
_COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#e67700", "#c2255c", "#495057")
_MARKERS = ("o", "s", "^", "v", "P", "X", "d")
_Z95 = 1.959964  # 97.5 % quantile of the normal distribution

# One number for all rows, or one a row.
Bound = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class Run:
    """One strategy over all problems. Tokens and costs are means over problems.

    Attributes:
      name: as in tables, for example `cut at 32` or `Wait x2`.
      label: next to the point of the plot, where the legend says the rest.
      families: the curves that the run is a point of. `budgets` is thinking cut at growing budgets, `waits` a growing
        number of waits; the run without any control belongs to both.
      parallel: compute goes into more samples, not into longer ones.
      problems: number of problems.
      accuracy: percentage of problems answered correctly.
      error: one binomial standard error of `accuracy`, in percentage points.
      thinking_tokens: of the sample that counts, or of all samples where all vote: the place on the curve.
      answer_tokens: of the same samples.
      total_tokens: thinking and answers of all samples, rejected ones too.
      samples: how many were drawn.
      control: percentage of those samples whose thinking tokens lie in the range asked for; None where no range is.
      in_range: whether the mean does, which is what the paper counts; None likewise.
      cut: percentage of those samples whose thinking was cut, rather than ended by the model.
      seconds: wall-clock time that sampling took, over all problems; loading and compiling left out.
      dollars: for one problem; None where no price is known.
      undecided: problems whose answer is counted as not right because its comparison did not end.
    """

    name: str
    label: str
    families: tuple[str, ...]
    parallel: bool
    problems: int
    accuracy: float
    error: float
    thinking_tokens: float
    answer_tokens: float
    total_tokens: float
    samples: float
    control: float | None
    in_range: bool | None
    cut: float
    seconds: float
    dollars: float | None = None
    undecided: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`, in percent."""
        return wilson(self.accuracy / 100, self.problems)


def record(run: Run) -> dict[str, Any]:
    """Returns a run as JSON values, with its 95 % interval, its place in the two curves and its costs."""
    values = dataclasses.asdict(run)
    dollars = values.pop("dollars")
    return {
        **values,
        "interval": list(run.interval),
        "families": list(run.families),
        "budgets": "budgets" in run.families,
        "waits": "waits" in run.families,
        "seconds_per_problem": run.seconds / run.problems,
        "dollars_per_problem": dollars,
    }


def accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """Returns the percentage of True and its binomial standard error, 100 sqrt(p (1 - p) / n).

    The error describes the choice of problems. It is 0 where all answers are right or all are wrong; `wilson` gives a
    sensible interval there.

    Raises:
      UserError: there are no answers.
    """
    if not right:
        raise UserError("There are no answers to grade; give at least one problem.")
    share = sum(map(bool, right)) / len(right)
    return 100 * share, 100 * math.sqrt(share * (1 - share) / len(right))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval, in percent.

    Unlike the standard error it has a width for 0 of 10 and stays between 0 and 100. Source: E. B. Wilson, "Probable
    inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
      share: right answers / all answers, in [0, 1].
      count: number of answers, at least 1.
    """
    squared = _Z95**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(share * (1 - share) * squared + squared**2 / 4) / (1 + squared)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def control(thinking_tokens: Sequence[int], least: Bound, most: Bound) -> float:
    """Returns Control: the percentage of rows whose thinking tokens lie in [least, most], both ends included.

    Args:
      thinking_tokens: one count a row.
      least: fewest tokens asked for, one number for all rows or one a row.
      most: as `least`, the most tokens asked for.

    Raises:
      UserError: there are no rows.
    """
    if not thinking_tokens:
        raise UserError("There are no rows to take Control over; give at least one problem.")
    lows = [least] * len(thinking_tokens) if isinstance(least, (int, float)) else least
    highs = [most] * len(thinking_tokens) if isinstance(most, (int, float)) else most
    inside = [low <= count <= high for low, count, high in zip(lows, thinking_tokens, highs, strict=True)]
    return 100 * sum(inside) / len(inside)


def scaling(tokens: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """Returns Scaling: the mean slope over all pairs of runs, in percentage points per 1,000 thinking tokens.

    Each pair counts alike, however close its runs are. A pair with equal tokens has no slope and is left out.

    Args:
      tokens: x of each run, its average thinking tokens, in any order.
      accuracies: f of each run, in percent.

    Returns:
      the mean slope, or None where no pair has one: fewer than two runs, or all with equal tokens.
    """
    runs = sorted(zip(tokens, accuracies, strict=True))
    slopes = [(fb - fa) / (xb - xa) for (xa, fa), (xb, fb) in itertools.combinations(runs, 2) if xb > xa]
    return 1000 * sum(slopes) / len(slopes) if slopes else None


def performance(accuracies: Sequence[float]) -> float | None:
    """Returns Performance: the best accuracy of any run; None where there is no run."""
    return max(accuracies, default=None)


def metrics(runs: Sequence[Run]) -> dict[str, float | None]:
    """Returns `control`, `control_of_runs`, `scaling` (percentage points per 1,000 tokens) and `performance` of `runs`.

    `control` (%) is over the problems of all runs, `control_of_runs` (%) over the runs by their means, as the paper's
    table 3 has it. Runs that no range was asked of count in neither. Each is None where it is not defined.
    """
    asked = [run for run in runs if run.control is not None]
    rows = sum(run.problems for run in asked)
    return {
        "control": sum((run.control or 0) * run.problems for run in asked) / rows if rows else None,
        "control_of_runs": 100 * sum(bool(run.in_range) for run in asked) / len(asked) if asked else None,
        "scaling": scaling([run.thinking_tokens for run in runs], [run.accuracy for run in runs]),
        "performance": performance([run.accuracy for run in runs]),
    }


def families(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs of each curve; budgets and waits always, the others in the order in which they come."""
    found: dict[str, list[Run]] = {"budgets": [], "waits": []}
    for run in runs:
        for family in run.families:
            found.setdefault(family, []).append(run)
    return found


def plot(runs: Sequence[Run], path: pathlib.Path, title: str, wait: str = "Wait") -> None:
    """Draws accuracy against average thinking tokens as a PNG, one line a family: figures 4 and 6 of the paper.

    Sequential scaling is solid, parallel scaling dashed. Bars are 95 % Wilson intervals. One point alone is a marker.

    Args:
      runs: at least one.
      path: file to write.
      title: says which model, task and number of problems.
      wait: the extension string, for the legend.
    """
    # Imported here, without pyplot: no display, no global state, and nobody who only wants numbers waits for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(7.2, 4.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    legend = {
        "waits": f'thinking extended with "{wait}"' if wait else "end of thinking suppressed",
        "budgets": "thinking cut at a budget",
    }
    looks = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=True)
    curves = families(runs)
    # The run without any control is a point of both; where it is the only one of a curve, the other shows it.
    alone = [name for name in legend if len(curves[name]) == 1 and len(curves[name][0].families) > 1]
    for name in alone[:1]:
        curves[name] = []
    for family in ("waits", "budgets", *(name for name in curves if name not in legend)):
        colour, marker = next(looks)
        curve = sorted(curves[family], key=lambda run: run.thinking_tokens)
        if not curve:
            continue
        axes.errorbar(
            [run.thinking_tokens for run in curve], [run.accuracy for run in curve],
            yerr=_bars(curve), color=colour, marker=marker, markersize=6, linewidth=1.8, capsize=3,
            elinewidth=1.1, linestyle="--" if curve[0].parallel else "-", label=_literal(legend.get(family, family)),
            zorder=3,
        )  # fmt: skip
    wide = max(run.thinking_tokens for run in runs) * 0.15  # about the width of a label
    high = max(run.accuracy for run in runs) * 0.08
    for run in runs:
        natural = len(run.families) > 1
        crowded = any(
            0 < other.thinking_tokens - run.thinking_tokens < wide and abs(other.accuracy - run.accuracy) < high
            for other in runs
            if len(other.families) == 1
        )
        below = 7 if crowded or run.accuracy <= 5 else -11
        if natural:
            axes.plot(run.thinking_tokens, run.accuracy, "D", color="#222222", markersize=6.5, zorder=5)
        # The curves rise: below and to the right of a point there is room, above and to the left for the common one.
        axes.annotate(
            _literal(run.label), (run.thinking_tokens, run.accuracy),
            xytext=(-7, 6) if natural else (-6 if crowded else 7, below),
            ha="right" if natural else "left", textcoords="offset points", fontsize=8.5, color="#444444", zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    axes.set_xlabel("average thinking tokens")
    axes.set_ylabel("accuracy (%), 95 % intervals")
    axes.set_title(_literal(title), fontsize=11)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    top = max(10.0, *(run.interval[1] for run in runs))
    axes.set_ylim(-0.04 * top, 1.04 * top)  # room for whole markers at 0 % and at 100 %
    axes.margins(x=0.1)
    axes.legend(frameon=False, loc="best", fontsize=9.5, handlelength=4)  # as long as four dashes
    with files.replace(path) as file:
        figure.savefig(file, format="png")


def _bars(runs: Sequence[Run]) -> list[list[float]]:
    """Returns how far the intervals of `runs` reach below and above their accuracies, as `errorbar` takes it."""
    below = [max(run.accuracy - run.interval[0], 0.0) for run in runs]
    above = [max(run.interval[1] - run.accuracy, 0.0) for run in runs]
    return [below, above]


def _literal(text: str) -> str:
    """Escapes what matplotlib would take for the borders of a formula."""
    return text.replace("$", r"\$")
