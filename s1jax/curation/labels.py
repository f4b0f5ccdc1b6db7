"""Domains by a teacher: what it is asked, and which label its answer names."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s1jax.curation import domains as domains_lib
from s1jax.curation.measurement import Columns, Named, Note
from s1jax.data import identity
from s1jax.errors import UserError

# A list for questions of mathematics and science. MSC codes, as in the paper, are a file of the user's.
SUBJECTS = (
    "arithmetic", "number theory", "elementary algebra", "linear algebra", "abstract algebra", "inequalities",
    "sequences and series", "functional equations", "combinatorics", "graph theory", "game theory", "probability",
    "statistics", "logic and set theory", "plane geometry", "solid geometry", "analytic geometry", "trigonometry",
    "differential geometry", "topology", "real analysis", "complex analysis", "calculus", "differential equations",
    "numerical methods", "optimization", "word problems", "puzzles", "mechanics", "thermodynamics", "electromagnetism",
    "optics", "quantum physics", "relativity and astronomy", "inorganic chemistry", "organic chemistry",
    "physical chemistry", "biology", "earth science", "engineering", "algorithms", "programming", "economics",
    "medicine", "other",
)  # fmt: skip
_SHOWN = 3  # unknown answers in a note


@dataclasses.dataclass(frozen=True)
class Labels:
    """Measures `domain` as the label that a teacher's answer names.

    Attributes:
      lines: of the journal of a distil run with `template`, see `assign`.
      labels: that the teacher chose from, in the order of the list.
    """

    lines: Iterable[Mapping[str, Any]]
    labels: Sequence[str] = SUBJECTS

    def __call__(self, rows: Sequence[Named], out: pathlib.Path, note: Note) -> Columns:
        """See `s1jax.curation.measurement.Measurement`."""
        ids = [identity.question_id(text) for text in domains_lib.questions(rows)]
        found, notes = assign(ids, self.lines, self.labels)
        for sentence in notes:
            note(sentence)
        return domains_lib.columns(found)


def read(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads a list of labels.

    Args:
      path: a text file with one label a line; after a tab may follow what it means, which the teacher sees as well.
        Empty lines and lines that begin with # are left out.

    Returns:
      label -> what it means, which may be empty.

    Raises:
      UserError: the file cannot be read, has fewer than 2 labels, or two that differ in case or punctuation only.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a text file with one label a line.") from None
    found: dict[str, str] = {}
    folded: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        label, _, meaning = (part.strip() for part in line.partition("\t"))
        if not label or label.startswith("#"):
            continue
        if not _fold(label):
            raise UserError(f"{path}:{number}: the label {label!r:.40} has neither letters nor digits; give it some.")
        if _fold(label) in folded:
            raise UserError(
                f"{path}:{number}: {label!r:.40} is there already as {folded[_fold(label)]!r:.40}; keep one."
            )
        found[label] = folded[_fold(label)] = label
        found[label] = meaning
    if len(found) < 2:
        raise UserError(f"{path} has {len(found)} labels; give at least two, one a line.")
    return found


def template(labels: Mapping[str, str]) -> str:
    """Returns the message to a teacher, in which `{question}` stands for the question.

    Args:
      labels: label -> what it means.
    """
    lines = [f"- {label}: {meaning}" if meaning else f"- {label}" for label, meaning in labels.items()]
    return "\n".join(
        [
            "Which of these subjects does the question below belong to? Choose the one that fits best.",
            "",
            *lines,
            "",
            "Answer with the subject alone, written as in the list. Do not answer the question.",
            "",
            "Question:",
            "{question}",
        ]
    )


def label_of(answer: str, labels: Iterable[str]) -> str | None:
    """Returns the label that an answer names; None where it names none, or several.

    The last line that has letters or digits counts. It is a label, up to case and punctuation, or it holds one: of
    labels inside each other (algebra, linear algebra) the longer one.
    """
    lines = [line for line in map(_fold, answer.splitlines()) if line]
    if not lines:
        return None
    folded = {_fold(label): label for label in labels}
    if lines[-1] in folded:
        return folded[lines[-1]]
    rest, found = f" {lines[-1]} ", []
    for name in sorted(folded, key=lambda name: (-len(name), name)):
        if f" {name} " in rest:
            found.append(folded[name])
            rest = rest.replace(f" {name} ", " | ")
    return found[0] if len(found) == 1 else None


def assign(
    ids: Sequence[str], answers: Iterable[Mapping[str, Any]], labels: Iterable[str]
) -> tuple[list[str | None], list[str]]:
    """Returns the domain of each row, and sentences about rows that have none.

    Args:
      ids: question ids of rows.
      answers: lines of the journal of `s1jax distil`: `id`, `answer` (its number), `state`, `content`. Of several
        answers to a question the one that most of them name counts; of equally frequent ones the first of the list.
      labels: in the order of the list.

    Raises:
      UserError: no row has a domain.
    """
    labels = list(labels)
    votes: dict[str, collections.Counter[str]] = {}
    unknown: collections.Counter[str] = collections.Counter()
    states: collections.Counter[str] = collections.Counter()
    asked = set(ids)
    for line in answers:
        if line["id"] not in asked:
            continue
        if line["state"] != "done":
            states[line["state"]] += 1
        elif (label := label_of(line["content"], labels)) is None:
            unknown[" ".join(line["content"].split())[-60:]] += 1
        else:
            votes.setdefault(line["id"], collections.Counter())[label] += 1
    places = {label: place for place, label in enumerate(labels)}
    chosen = {
        row_id: min(found, key=lambda label, found=found: (-found[label], places[label]))  # type: ignore[misc]
        for row_id, found in votes.items()
    }
    domains = [chosen.get(row_id) for row_id in ids]
    notes = []
    if unknown:
        shown = ", ".join(
            f"{text!r}" for text, _ in sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
        )
        notes.append(f"{unknown.total():,} answers name none of the {len(labels)} labels, or several: {shown}.")
    if states:
        notes.append(f"answers without a label: {', '.join(f'{n:,} {state}' for state, n in sorted(states.items()))}.")
    if missing := sum(domain is None for domain in domains):
        if missing == len(domains):
            raise UserError(" ".join(["none of the rows has a domain; ask the teacher for labels first.", *notes]))
        notes.append(f"{missing:,} of {len(domains):,} rows have no domain; their column `domain` is left out.")
    return domains, notes


def _fold(text: str) -> str:
    """Words in lower case with single spaces; punctuation and markup are left out."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))
