"""Draws accuracy against average thinking tokens, one curve a family of runs: figures 4 and 6 of the s1 paper.

The x axis is logarithmic if the largest average is at least 30 times the smallest one of a token or more. On a linear
axis such runs would hide one another at the left. Averages below a token, such as the 0 of a budget of 0, then have a
linear stretch of their own at the left end.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from s1jax.errors import MissingPackageError, UserError
from s1jax.evaluation import metrics
from s1jax.evaluation.metrics import Run
from s1jax.io import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The numbers of colours and markers have no common divisor, so a pair of both does not return before the 57th curve.
COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#0b7285", "#e67700", "#c2255c", "#495057")
_MARKERS = ("o", "s", "^", "v", "P", "X", "d")
# Formats, and what leaves the date out of each.
_WITHOUT_DATE: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_LOG_RATIO = 30  # from this ratio of averages on, the x axis is logarithmic
_LEGEND_INSIDE = 6  # legends with more entries are placed below the axes


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a picture shows of one evaluation.

    Attributes:
      runs: at least one.
      wait: the extension string, for the legend.
      name: begins its legend entries; empty if the picture shows one evaluation only.
    """

    runs: Sequence[Run]
    wait: str = "Wait"
    name: str = ""


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The runs of one family in the order of their thinking tokens, with their looks."""

    runs: Sequence[Run]
    label: str
    colour: str
    marker: str


def draw(evaluations: Sequence[Evaluation], title: str) -> Figure:
    """Draws the curves of one or several evaluations.

    Sequential scaling is solid, parallel scaling dashed. Bars are 95 % Wilson intervals. A curve of one point is a
    marker. Of one evaluation the points have labels, and each family has its own colour. Of several evaluations each
    has its own colour, each family its own marker, and the points have no labels.

    Args:
      evaluations: at least one, at most eight.
      title: above the axes.

    Raises:
      UserError: there are more evaluations than colours.
      MissingPackageError: matplotlib is not installed.
    """
    curves = list(_curves(evaluations))
    below = len(curves) > _LEGEND_INSIDE
    lines = -(-len(curves) // 2) if below else 0
    figure, axes = empty("A picture of the curve", title, len(evaluations), "evaluations", 4.8 + 0.24 * lines)
    for curve in curves:
        axes.errorbar(
            [run.thinking_tokens for run in curve.runs], [run.accuracy for run in curve.runs],
            yerr=_bars(curve.runs), color=curve.colour, marker=curve.marker, markersize=6, linewidth=1.8, capsize=3,
            elinewidth=1.1, linestyle="--" if curve.runs[0].parallel else "-", label=literal(curve.label), zorder=3,
        )  # fmt: skip
    runs = [run for evaluation in evaluations for run in evaluation.runs]
    counts = [run.thinking_tokens for run in runs]
    if is_logarithmic(counts):
        _set_logarithmic(axes, counts)
    for run in runs:
        if len(run.families) > 1:
            axes.plot(run.thinking_tokens, run.accuracy, "D", color="#222222", markersize=6.5, zorder=5)
    if len(evaluations) == 1:
        _label_points(axes, runs, is_logarithmic(counts))
    axes.set_xlabel("average thinking tokens")
    axes.set_ylabel("accuracy (%), 95 % intervals")
    top = max(10.0, *(run.interval[1] for run in runs))
    axes.set_ylim(-0.04 * top, 1.04 * top)  # room for whole markers at 0 % and at 100 %
    axes.margins(x=0.1)
    place = dict(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2) if below else dict(loc="best")
    axes.legend(frameon=False, fontsize=9.5, handlelength=4, **place)  # handles as long as four dashes
    return figure


def empty(what: str, title: str, colours: int, coloured: str, height: float = 4.8) -> tuple[Figure, Axes]:
    """Returns a figure with axes that have a title and a grid.

    Args:
      what: the picture, for messages.
      title: above the axes.
      colours: how many of `COLOURS` it needs.
      coloured: what has a colour of its own, for messages.
      height: in inches.

    Raises:
      UserError: there are not so many colours.
      MissingPackageError: matplotlib is not installed.
    """
    # Imported here, without pyplot: no display, no global state, and whoever only wants numbers does not wait for it.
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError:
        raise MissingPackageError(what, "matplotlib", "plot") from None
    from matplotlib.figure import Figure

    if colours > len(COLOURS):
        raise UserError(f"a picture has colours for {len(COLOURS)} {coloured}, not {colours}; draw fewer.")
    figure = Figure(figsize=(7.2, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(literal(title), fontsize=11)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def literal(text: str) -> str:
    """Escapes what matplotlib would read as the borders of a formula."""
    return text.replace("$", r"\$")


def check_name(path: str | os.PathLike[str]) -> str:
    """Returns the format of a picture, by the end of its file's name.

    Raises:
      UserError: it is none of .png, .svg and .pdf.
    """
    kind = pathlib.Path(path).suffix.lower().removeprefix(".")
    if kind not in _WITHOUT_DATE:
        raise UserError(
            f"{path}: a picture is written as .{', .'.join(_WITHOUT_DATE)}; give its name one of these ends."
        )
    return kind


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, SVG or PDF, by the end of the file's name. The file appears whole or not at all.

    Raises:
      UserError: the name has another end.
    """
    import matplotlib

    kind = check_name(path)
    # The same runs give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "s1jax"}), files.replace(path) as file:
        figure.savefig(file, format=kind, metadata=_WITHOUT_DATE[kind])


def is_logarithmic(tokens: Sequence[float]) -> bool:
    """Whether the x axis of runs with these average thinking tokens is logarithmic, see the module's text."""
    counts = [count for count in tokens if count >= 1]
    return bool(counts) and max(counts) >= _LOG_RATIO * min(counts)


def _curves(evaluations: Sequence[Evaluation]) -> Iterator[_Curve]:
    several = len(evaluations) > 1
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(_MARKERS), strict=True)
    markers = itertools.cycle(_MARKERS)
    known: dict[str, str] = {}  # the marker of each family, if there are several evaluations
    for evaluation, own in zip(evaluations, COLOURS, strict=False):
        legend = {
            "waits": f'thinking extended with "{evaluation.wait}"' if evaluation.wait else "end of thinking suppressed",
            "budgets": "thinking cut at a budget",
        }
        curves = metrics.families(evaluation.runs)
        # The run without any control is a point of both; if it is the only point of a curve, the other curve shows it.
        alone = [name for name in legend if len(curves[name]) == 1 and len(curves[name][0].families) > 1]
        for name in alone[:1]:
            curves[name] = []
        for family in ("waits", "budgets", *(name for name in curves if name not in legend)):
            if several and family not in known:
                known[family] = next(markers)
            colour, marker = (own, known[family]) if several else next(looks)
            runs = sorted(curves[family], key=lambda run: run.thinking_tokens)
            label = legend.get(family, family)
            if runs:
                yield _Curve(runs, f"{evaluation.name}: {label}" if evaluation.name else label, colour, marker)


def _set_logarithmic(axes: Axes, counts: Sequence[float]) -> None:
    """Sets the x axis to powers of two around `counts`, the average thinking tokens of all runs."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    least, most = min(count for count in counts if count >= 1), max(counts)
    low, high = math.floor(math.log2(least)), math.ceil(math.log2(most))
    step = -(-(high - low) // 9)  # at most ten labels
    ticks = [float(2**power) for power in range(low, high + 1, step)]
    if min(counts) < 1:
        axes.set_xscale("symlog", linthresh=2**low, linscale=0.6, base=2)
        axes.xaxis.set_major_locator(FixedLocator([0.0, *ticks]))
    else:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))


def _label_points(axes: Axes, runs: Sequence[Run], logarithmic: bool) -> None:
    """Writes the label of each run beside its point."""
    from matplotlib.patheffects import withStroke

    def place(run: Run) -> float:
        return math.log2(1 + run.thinking_tokens) if logarithmic else run.thinking_tokens

    wide = max(map(place, runs)) * (0.08 if logarithmic else 0.15)  # about the width of a label
    high = max(run.accuracy for run in runs) * 0.08
    for run in runs:
        natural = len(run.families) > 1
        crowded = any(
            0 < place(other) - place(run) < wide and abs(other.accuracy - run.accuracy) < high
            for other in runs
            if len(other.families) == 1
        )
        below = 7 if crowded or run.accuracy <= 5 else -11
        # The curves rise: there is room below and to the right of a point, for the common one above and to the left.
        axes.annotate(
            literal(run.label), (run.thinking_tokens, run.accuracy),
            xytext=(-7, 6) if natural else (-6 if crowded else 7, below),
            ha="right" if natural else "left", textcoords="offset points", fontsize=8.5, color="#444444", zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _bars(runs: Sequence[Run]) -> list[list[float]]:
    """Returns how far the intervals of `runs` reach below and above their accuracies, as `errorbar` takes it."""
    below = [max(run.accuracy - run.interval[0], 0.0) for run in runs]
    above = [max(run.interval[1] - run.accuracy, 0.0) for run in runs]
    return [below, above]
