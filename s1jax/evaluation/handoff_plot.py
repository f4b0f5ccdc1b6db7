"""Draws accuracy against dollars for questions that are handed to a remote model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from s1jax.evaluation import plot
from s1jax.evaluation.handoff import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(studies: Sequence[Study], title: str, has_price: bool) -> Figure:
    """Draws one colour for each local strategy.

    Solid: the least sure answers are handed off first. Dotted: who knows all verdicts. Dashed: random mixing. A circle
    is the local model alone, the star the remote alone.

    Args:
      studies: at least one, at most eight, with one remote.
      title: above the axes.
      has_price: whether the x axis is dollars; else it is the share of questions that are handed off.

    Raises:
      UserError: there are more studies than colours.
      MissingPackageError: matplotlib is not installed.
    """
    figure, axes = plot.empty("A picture of the hand-off", title, len(studies), "local strategies")
    for study, colour in zip(studies, plot.COLOURS, strict=False):
        name = plot.literal(study.local.name)
        for order, style, label in ((study.order(), "-", f"{name}, least sure first"), (study.oracle(), ":", "")):
            accuracy, dollars = study.curve(order)
            x = dollars if has_price else np.linspace(0, 1, len(accuracy))
            axes.plot(x, accuracy, style, color=colour, linewidth=1.8 if label else 1.2, label=label or "_")
        accuracy, dollars = study.curve(study.order())
        # Who mixes at random asks one of the two, not both.
        ends = np.array([dollars[0], study.remote.dollars.mean()]) if has_price else np.array([0.0, 1.0])
        axes.plot(ends, accuracy[[0, -1]], "--", color=colour, linewidth=1.0)
        axes.plot(ends[0], accuracy[0], "o", color=colour, markersize=6)
    remote = studies[0].remote
    alone = remote.dollars.mean() if has_price else 1.0
    label = plot.literal(f"{remote.name} alone")
    axes.plot(alone, 100 * remote.right.mean(), "*", color="#222222", markersize=11, label=label, zorder=5)
    for style, label in ((":", "knowing all verdicts"), ("--", "random mixing")):
        axes.plot([], [], style, color="#777777", linewidth=1.2, label=label)
    axes.set_xlabel("USD per problem" if has_price else "share of problems handed off")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure
