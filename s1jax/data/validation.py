"""Which rows a run is validated on: held out of the training rows, or read from somewhere else."""

from __future__ import annotations

import math
import pathlib

from s1jax.config.experiment import DataConfig, held_out
from s1jax.data import batches, mix, s1k
from s1jax.data.s1k import Row
from s1jax.errors import UserError
from s1jax.io import splits

_SPLITS = ("validation", "test", "train")  # of a folder that is given, the first that it has
_ORDER = 2**63  # in place of an epoch, so that the held-out rows are not those of the front of some epoch


def split(rows: list[Row], data: DataConfig, notes: list[str]) -> tuple[list[Row], list[Row]]:
    """Returns the rows to train on and the rows to validate on, both in the order of their source.

    Args:
      rows: of `data.source`; empty for a source without rows.
      data: `validation` says which rows are validated on, see `DataConfig`.
      notes: gets sentences about the rows that are validated on.

    Raises:
      UserError: if there are no such rows, or too few are left to train on.
    """
    if not data.validation:
        return rows, []
    share = held_out(data.validation)
    if share is None:
        held, kept = _read(data, notes), rows
    else:
        chosen = _chosen(rows, data, share)
        held = [row for i, row in enumerate(rows) if i in chosen]
        kept = [row for i, row in enumerate(rows) if i not in chosen]
        sources = mix.parse(data.source).sources
        each = ", ".join(f"{sum(row.source == i for row in held)} of {name}" for i, name in enumerate(sources))
        notes.append(
            f"{len(held)} of {len(rows)} rows are held out for validation (data.validation {data.validation})"
            f"{': ' + each if len(sources) > 1 else ''}."
        )
    questions = {(row.system, row.history, row.question) for row in kept}
    both = [row.name for row in held if (row.system, row.history, row.question) in questions]
    if both:
        more = ", ..." if len(both) > 3 else ""
        notes.append(
            f"{len(both)} of {len(held)} validation rows have a question that is trained on as well:"
            f" {', '.join(both[:3])}{more}; the validation loss is too low for them."
        )
    return kept, held


def _chosen(rows: list[Row], data: DataConfig, share: int | float) -> set[int]:
    """Returns the indices of the rows that are held out: of a mix with weights, in the proportions of the mix."""
    mixed = mix.parse(data.source)
    groups = len(mixed.weights) or 1
    places = [[i for i, row in enumerate(rows) if groups == 1 or row.source == group] for group in range(groups)]
    sizes = [len(group) for group in places]
    taken = mix.takes(sizes, mixed.weights) if mixed.weights else sizes
    count = share if isinstance(share, int) else math.ceil(share * sum(taken))
    if count > sum(sizes) - groups:
        had = f"has {len(rows)} rows" if rows else "has no rows that could be held out"
        raise UserError(
            f"data.validation is {data.validation}, but data.source {data.source} {had}; give fewer, or a file."
        )
    if groups == 1:
        return set(batches.order(data.seed, _ORDER, len(rows))[:count].tolist())
    numbers = mix.apportion(count, mixed.weights, [size - 1 for size in sizes])
    orders = (mix.ranks(data.seed, _ORDER, i + 1, size) for i, size in enumerate(sizes))
    found = zip(places, orders, numbers, strict=True)
    return {group[i] for group, permutation, number in found for i in permutation[:number].tolist()}


def _read(data: DataConfig, notes: list[str]) -> list[Row]:
    """The rows of a file, a folder, or another split of the folder that is trained on."""
    wanted, sources = data.validation, mix.parse(data.source).sources
    if pathlib.Path(wanted).exists():
        rows = s1k.load_rows(wanted, data.traces, 0, notes, _SPLITS, data.loss_on)
    elif wanted.isidentifier() and all(pathlib.Path(source).is_dir() for source in sources):
        # A folder's splits have the names of `datasets`: `val` and `dev` are validation.
        names = (wanted, *splits.assign([f"{wanted}/rows"]))
        found = (s1k.load_rows(source, data.traces, 0, notes, names, data.loss_on) for source in sources)
        rows = [row for some in found for row in some]
    else:
        raise UserError(
            f"data.validation {wanted} is not a file or folder, and data.source {data.source} is not a folder with such"
            " a split; give a file or folder of rows, or a number such as 50 or a share such as 0.05 of the source's"
            " rows."
        )
    notes.append(f"{len(rows)} rows are validated on (data.validation {wanted}).")
    return rows
