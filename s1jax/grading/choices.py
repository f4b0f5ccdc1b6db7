"""Finds the letter of a choice in a model's text."""

import re
import string
from collections.abc import Sequence

from s1jax.grading import compare
from s1jax.grading.extract import extract

LETTERS = string.ascii_uppercase  # the letters of a question's choices, in order


def letter(text: str, choices: Sequence[str]) -> str | None:
    r"""Returns the letter of the choice that `text` gives, or None if it gives none or more than one.

    The final answer is searched in this order: the whole text of one of the choices; nothing but a letter (`C`, `(C)`,
    `option c`); a letter in front (`C) 12 m`, `Option C: 12 m`); a letter after "is", "option" or "choice"; a letter in
    parentheses; the only single letter, except that "A" and "I" before most words are articles; an answer that equals
    one of the choices. A negated letter ("not A", "all but A", "A is wrong") does not count.
    """

    def plain(given: str) -> str:
        given = re.sub(r"\\(?:text|textbf|mathbf|mathrm|mbox|rm)\s*\{([^{}]*)\}", r"\1", given)
        given = re.sub(r"\\[,;:]|\s+", " ", re.sub(r"\\[()!]|[${}]|\\(?:left|right)(?![a-z])", "", given))
        return given.strip(" .*'\"`\u2018\u2019").removesuffix(".")

    answer, letters = plain(extract(text)), LETTERS[: len(choices)]
    texts = [plain(choice).casefold() for choice in choices]
    if len(answer) > 1 and texts.count(answer.casefold()) == 1:  # "Vitamin C" need not be C
        return letters[texts.index(answer.casefold())]
    bare = re.fullmatch(r"(?:(?:option|choice)\s+)?[(\[{]?([A-Z])[)\]}]?[.:,]?", answer, re.IGNORECASE)
    if bare:
        return bare[1].upper() if bare[1].upper() in letters else None
    one, each = f"([{letters}])", rf"\(?\b[{letters}]\b\)?"
    others = r"(?:\s+of\s+(?:the\s+\w+|them|these))?(?:\s+(?:options?|choices?|answers?|others?))?"
    but = rf"(?:[Aa]ll|[Aa]ny\w*|[Ee]very\w*){others}\s+(?:but|except(?:\s+for)?)"
    denied = rf"\b(?:[Nn]either|[Nn]ot|nor|{but})\s+{each}(?:(?:,|\s+n?or|\s+and)\s+{each})*"
    claimed = re.sub(rf"{denied}|{each}\s+is\s+(?:wrong|incorrect|false|not)\b", "", answer)
    for pattern in (
        rf"^(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+)?\(?{one}(?:[).:](?=\s|$)|\)?\s+[-\u2013\u2014]\s)",
        rf"\b(?:is|[Oo]ption|[Cc]hoice|[Aa]nswer)\s*:?\s*\(?{one}\b",
        rf"\({one}\)",
        rf"(?<![\w'\\])(?![AI]\s+(?!(?:or|and|is|but|not|because|since|as)\b)[a-z]){one}(?![\w'])",
    ):
        if found := set(re.findall(pattern, claimed)):
            return found.pop() if len(found) == 1 else None
    same = [name for name, choice in zip(letters, choices, strict=True) if compare.equal(extract(text), choice)]
    return same[0] if len(same) == 1 else None
