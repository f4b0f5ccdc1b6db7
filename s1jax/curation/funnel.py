"""Draws how many rows are left after each rule."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from s1jax.io import files

_COLOUR = "#1f6feb"


def write(counts: Sequence[tuple[str, int]], title: str, path: pathlib.Path) -> bool:
    """Writes a bar chart as PNG; returns False where matplotlib is not installed.

    Args:
      counts: (rule, rows after it), from the top down.
      title: above the axes.
      path: of the picture.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 0.36 * len(counts)), dpi=160, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [name for name, _ in counts]
    places = range(len(counts))
    axes.barh(places, [count for _, count in counts], color=_COLOUR, height=0.7)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    most = max(count for _, count in counts)
    for place, (_, count) in zip(places, counts, strict=True):
        axes.text(count + 0.01 * most, place, f"{count:,}", va="center", fontsize=9)
    axes.set_xlim(0, 1.14 * most)
    axes.set_xlabel("rows")
    axes.set_title(title.replace("$", r"\$"), fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    with files.replace(path) as file:
        canvas.print_png(file)
    return True
