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
from s1jax.curation.features import Features
from s1jax.curation.given_answer import GivenAnswer
from s1jax.curation.near_duplicates import NearDuplicates
from s1jax.curation.quality import Quality
from s1jax.curation.repetition import Repetition
from s1jax.curation.right import Right
from s1jax.curation.settings import Settings
from s1jax.curation.steps import Step
from s1jax.curation.strings import Strings
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
    if settings.only_right:
        place = next(i for i, step in enumerate(found) if step.name in (answers.NAME, choice.NAME))
        found.insert(place, _rule(Right(), needs=("correct",), whole=True, of_a_teacher=True))
    if not settings.size:
        found = [step for step in found if step.name != choice.NAME]
    found = [step for step in found if step.name not in settings.skip and (questions or step is not check)]
    needs = tuple(dict.fromkeys(column for step in found for column in step.needs))
    if needs:
        found.insert(0, Step(FEATURES, row=Features(needs), settings={"columns": list(needs)}))
    if not questions or check.name in settings.skip:
        return found
    return [*found, dataclasses.replace(check, name=GATE, whole=True)]


def _ours(settings: Settings, check: Step) -> list[Step]:
    return [*_of_questions(settings, check), *_of_traces(), answers.shortest(), choice.ours(settings)]


def _questions(settings: Settings, check: Step) -> list[Step]:
    return [*_of_questions(settings, check), answers.first(), choice.ours(settings)]


def _of_questions(settings: Settings, check: Step) -> list[Step]:
    """Our rules that need no teacher."""
    near = NearDuplicates(template=settings.templates)
    return [
        _rule(Strings(), wants=("source_type",)), solved.always(), _rule(GivenAnswer(), whole=True),
        Step(near.name, rows=near, settings=dataclasses.asdict(near)), check,
    ]  # fmt: skip


def _of_traces() -> list[Step]:
    """Our rules that read what a teacher wrote."""
    quality = _rule(Quality(), wants=("finish_reason",), whole=True, of_a_teacher=True)
    return [quality, _rule(Repetition(), whole=True, of_a_teacher=True)]


def _s1_paper(settings: Settings, check: Step) -> list[Step]:
    return [*_of_s1(Strings(), check), choice.s1(settings, mixed=False)]


def _s1_code(settings: Settings, check: Step) -> list[Step]:
    return [*_of_s1(Strings(as_released=True), check), choice.s1(settings, mixed=True)]


def _of_s1(strings: Strings, check: Step) -> list[Step]:
    return [_rule(strings, wants=("source_type",)), solved.ever(), answers.first(), check]


def _rule(
    rule: Strings | GivenAnswer | Quality | Repetition | Right,
    *,
    needs: tuple[str, ...] = (),
    wants: tuple[str, ...] = (),
    whole: bool = False,
    of_a_teacher: bool = False,
) -> Step:
    """Returns a rule of one row as a step; its settings are the rule's fields."""
    return Step(
        rule.name,
        row=rule,
        needs=needs,
        wants=wants,
        whole=whole,
        of_a_teacher=of_a_teacher,
        settings=dataclasses.asdict(rule),
    )


_MAKERS = {"ours": _ours, "questions": _questions, "s1_paper": _s1_paper, "s1_code": _s1_code}
FEATURES, GATE = "features", "last_gate"
