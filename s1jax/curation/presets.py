"""The presets: which rules a curation applies, in which order, with which settings.

`s1_paper` is Algorithm 1 of the s1 paper, `s1_code` the released notebook (data/filter.ipynb of simplescaling/s1), and
`ours` what later work found (docs/decisions/21-data.md). `questions` is `ours` without the rules that read a trace: it
chooses questions before a teacher is paid for answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from s1jax.curation import answers, choice, clean, solved
from s1jax.curation.decontamination import Evaluated
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.errors import UserError


def steps(settings: Settings, questions: Sequence[Evaluated]) -> list[Step]:
    """Returns the steps of a preset without those that are skipped.

    Rules that read what a teacher wrote come after the others, so that a report can say what a teacher would have cost
    had the others been applied first. Decontamination comes once more at the end, over whatever was chosen.

    Args:
      settings: of the curation.
      questions: of the evaluation sets; without any, decontamination is left out.

    Raises:
      UserError: `settings.skip` names a rule that the preset does not have.
    """
    check = clean.step(clean.OURS if settings.preset in ("ours", "questions") else clean.PAPER, questions)
    found = [*_MAKERS[settings.preset](settings, check)]
    names = [step.name for step in found]
    for name in settings.skip:
        if name not in names:
            raise UserError(f"--skip={name} is not a rule of {settings.preset}, which has {', '.join(names)}.")
    found = [step for step in found if step.name not in settings.skip]
    if not questions or check.name in settings.skip:
        return [step for step in found if step is not check]
    return [*found, dataclasses.replace(check, name=GATE, reads_trace=True)]


def _ours(settings: Settings, check: Step) -> list[Step]:
    return [solved.always(), check, answers.shortest(), choice.ours(settings)]


def _questions(settings: Settings, check: Step) -> list[Step]:
    return [solved.always(), answers.first(), check, choice.ours(settings)]


def _s1_paper(settings: Settings, check: Step) -> list[Step]:
    return [solved.ever(), answers.first(), check, choice.s1(settings, mixed=False)]


def _s1_code(settings: Settings, check: Step) -> list[Step]:
    return [solved.ever(), answers.first(), check, choice.s1(settings, mixed=True)]


_MAKERS = {"ours": _ours, "questions": _questions, "s1_paper": _s1_paper, "s1_code": _s1_code}
GATE = "last_gate"
