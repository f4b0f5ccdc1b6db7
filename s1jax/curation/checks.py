"""Checks of a curation that do not depend on where it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from s1jax.curation import reading
from s1jax.curation.settings import Settings
from s1jax.curation.steps import MEASURED_BY, Step
from s1jax.errors import UserError


def columns(
    have: Collection[str],
    sources: Sequence[str],
    settings: Settings,
    steps: Sequence[Step],
    note: Callable[[str], None],
) -> None:
    """Refuses a pool without a column that a rule needs, and says which ones a rule would read.

    Args:
      have: columns that at least one row has.
      sources: of the rows.
      settings: of the curation.
      steps: its rules.
      note: gets a sentence for each column that is not there and could be read.
    """
    if settings.chooses_traces and "trace_characters" not in have:
        raise UserError(
            f"no row of --rows={','.join(sources)} has a trace, and --preset={settings.preset} chooses rows to train"
            " on; choose questions with --preset=questions and have s1jax distil write the traces."
        )
    for step in steps:
        for name in step.needs:
            if name not in have:
                raise UserError(
                    f"the pool has no column {name}, which the rule {step.name} of --preset={settings.preset} needs:"
                    f" {MEASURED_BY.get(name, 'add it')}; or leave the rule out with --skip={step.name}."
                )
        for name in step.wants:
            if name not in have and name not in reading.HIDDEN:
                note(f"the pool has no column {name}, which the rule {step.name} would read; it goes without.")


def size(chosen: int, settings: Settings, note: Callable[[str], None]) -> None:
    """Says that fewer rows are left than were asked for."""
    if settings.size and chosen < settings.size:
        note(
            f"{chosen:,} rows are left, fewer than --size={settings.size:,}; give more rows, or leave a rule out with"
            " --skip."
        )
