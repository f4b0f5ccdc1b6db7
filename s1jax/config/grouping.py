"""Layers in order -> the groups that a scan runs."""

from __future__ import annotations

from collections.abc import Sequence

from s1jax.config.layers import Layer
from s1jax.config.model import Group

_MAX_PERIOD = 16


def group(layers: Sequence[Layer]) -> tuple[Group, ...]:
    """The groups that hold these layers.

    From the start, each group is the pattern, of up to 16 layers, whose repeats cover the most layers; of several such
    patterns the shortest.
    """
    groups, start = [], 0
    while start < len(layers):
        best, covered = 1, 0
        for period in range(1, min(_MAX_PERIOD, len(layers) - start) + 1):
            end = start + period
            while end < len(layers) and layers[end] == layers[end - period]:
                end += 1
            repeats = (end - start) // period
            if repeats * period > covered and (repeats > 1 or period == 1):
                best, covered = period, repeats * period
        groups.append(Group(covered // best, tuple(layers[start : start + best])))
        start += covered
    return tuple(groups)
