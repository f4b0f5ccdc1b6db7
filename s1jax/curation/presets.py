"""The presets: which rules a curation applies, in which order, with which settings.

`s1_paper` is Algorithm 1 of the s1 paper, `s1_code` the released notebook (data/filter.ipynb of simplescaling/s1), and
`ours` what later work found (docs/decisions/21-data.md). `questions` is `ours` without the rules that read a trace: it
chooses questions before a teacher is paid for answers.
"""

from __future__ import annotations

from s1jax.curation import answers, choice, solved
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.errors import UserError


def steps(settings: Settings) -> list[Step]:
    """Returns the steps of a preset without those that are skipped.

    Raises:
      UserError: `settings.skip` names a rule that the preset does not have.
    """
    found = _MAKERS[settings.preset](settings)
    names = [step.name for step in found]
    for name in settings.skip:
        if name not in names:
            raise UserError(f"--skip={name} is not a rule of {settings.preset}, which has {', '.join(names)}.")
    return [step for step in found if step.name not in settings.skip]


def _ours(settings: Settings) -> list[Step]:
    return [solved.always(), answers.step(), choice.ours(settings)]


def _questions(settings: Settings) -> list[Step]:
    return [solved.always(), choice.ours(settings)]


def _s1_paper(settings: Settings) -> list[Step]:
    return [solved.ever(), choice.s1(settings, mixed=False)]


def _s1_code(settings: Settings) -> list[Step]:
    return [solved.ever(), choice.s1(settings, mixed=True)]


_MAKERS = {"ours": _ours, "questions": _questions, "s1_paper": _s1_paper, "s1_code": _s1_code}
NEEDS_TRACE = ("ours", "s1_paper", "s1_code")
