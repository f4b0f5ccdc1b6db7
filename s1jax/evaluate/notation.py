r"""One way of writing for answers that are written in many: `½`, `1/2`, `0.5 `, `$\tfrac{1}{2}$.` and "It is $0.5$".

Nothing here decides whether two answers are equal: that is for `grading`, which compares what these functions return.
"""

from __future__ import annotations

import re
import unicodedata

# A LaTeX command around a letter or a word: `\text{B}`, `\mathbf{(B)}`.
_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boldsymbol)\s*\{([^{}]*)\}")
# Two letters in a row that are no LaTeX command, no argument of one and no product, as `xy` is one in `2xy`.
WORD = re.compile(r"(?<![\\A-Za-z\d{^_])(?:a\s+)?[A-Za-z]{2,}")

# Signs that have a name in LaTeX, and fractions of one character.
_SIGNS = {
    "\u2212": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u221e": r"\infty ",
    "\u222a": r"\cup ",
    "\u03c0": r"\pi ",
    "\u2205": r"\emptyset ",
    "\u201c": '"',
    "\u201d": '"',
} | {
    sign: " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
    for sign in map(chr, [*range(0xBC, 0xBF), *range(0x2150, 0x215F)])
}
_TABLE = str.maketrans(_SIGNS)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_MONEY = re.compile(r"(?:\bUS)?\\?[$€£¥\u20b9]")
# What is written out in words or as in a program: math-verify reads what LaTeX calls them.
_REWRITTEN = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),
        (r"(?:\\?sqrt|\u221a)\s*(?:\(([^()]*)\)|(\d+|[a-z](?![A-Za-z])))", r"\\sqrt{\1\2}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\\A-Za-z])inf(?:inity)?(?![A-Za-z])", r"\\infty "),
        # "sin 30" is no 30; without anything behind it, it is a word.
        (r"(?<![\\A-Za-z])((?:arc)?(?:sin|cos|tan)|ln|log|sec|csc|cot)(?=\s*[\d(\\^_]|\s[a-z]\b)", r"\\\1 "),
        (r"^(?:negative|minus)\s+(?=[\d.])", "-"),
        (r"\s*\bper\s?cent$", "%"),
        # "1e-9 eV" and "3 x 10^5 people"; and the minus of 10^-9, which math-verify leaves out.
        (r"(?<=\d)[eE]([+-]?\d{1,3})(?=\s+[A-Za-z\\])", r"\\times 10^{\1}"),
        (r"(?<=\d)(?:\s*[x*]\s*(?=10\s*\^)|\s+x\s+(?=\d))", r"\\times "),
        (r"\^\s*([+-]\s?\d+)", r"^{\1}"),
    )
]
_POWER_OF_TEN = re.compile(
    r"(?:([+-]?\d+(?:\.\d+)?)\s*\\(?:times|cdot)\s*)?10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))"
)
# What separates thousands in LaTeX and in some countries' writing.
_THIN = re.compile(r"(?<=\d)(?:\\[,!;: ]|[ \u00a0\u202f~])+(?=\d{3}(?!\d))")
# Thousands where a comma separates nothing else: in a list whose own commas have spaces (`1,000, 2,000`), and in a sum.
_LIST_OR_SUM = re.compile(r",\s|\b(?:and|or)\b|[=+*/]|\\(?:times|cdot)\b")
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
# An en dash for a minus, which is no range: nothing stands in front of it.
_DASH = re.compile(r"(?<![\w\s)}])\u2013(?=[\d.])")
_MIXED = re.compile(r"(?<![\w./,])([+-]?)(\d+) (\d+)/(\d+)(?![\w/])")
_REPEATING = re.compile(r"(\d+)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")
# Values of variables: `x=5, y=3`.
_BETWEEN_VALUES = re.compile(r"(?:[,;\s]|\band\b)+(?=[A-Za-z]\s*=)")
_VALUE = re.compile(r"([A-Za-z])\s*=([^=<>,]+)")
# One row or one column: what stands between its ends.
_VECTOR = re.compile(r"\\begin\{([pb]matrix)\}(.*)\\end\{\1\}", re.DOTALL)
# A formula within words, where `$5 - $7` is none; and "is" before what looks like a number or like mathematics.
_FORMULA = re.compile(r"(?<!\\)\$+([^$]+)(?<!\\)\$+(?!\d)|\\\((.+?)\\\)")
_IS = re.compile(r"\b(?:is|are|equals)\b:?\s+(?=(?:[A-Za-z]\s*=\s*)?\S*[\d(\[{\\])")
_SAYS = re.compile(r"[A-Za-z][A-Za-z,' -]*" + _IS.pattern)
_ENDS_IN_IS = re.compile(r"(?:\b(?:is|are|equals)|[:=])\s*$")


def normalize(answer: str) -> str:
    r"""Takes off what surrounds an answer, and writes numbers in the one way that `grading` reads.

    What goes: signs of money and mathematics, Markdown, one LaTeX command around everything, the full stop, spaces in
    thousands. `1 1/2` becomes `3/2`, `0.\overline{3}` becomes `\frac{3}{9}`, `4\times 10^3` becomes `4e3`, and
    `y=3, x=5` becomes `(5,3)`.
    """
    answer = _MONEY.sub("", answer.translate(_TABLE)).replace("{,}", ",").strip('*`" \t\n')
    answer = re.sub(r"^\\[(\[](.*)\\[)\]]$", r"\1", answer).strip().rstrip(".").strip()
    if wrapped := _COMMAND.fullmatch(answer):
        answer = wrapped[1].strip()
    answer = _SUPERSCRIPT.sub(_exponent, answer)
    for pattern, new in _REWRITTEN:
        answer = pattern.sub(new, answer)
    answer = _REPEATING.sub(_repeating, _DASH.sub("-", answer))
    answer = _THIN.sub("", _MIXED.sub(_improper, answer))
    if _LIST_OR_SUM.search(answer):
        answer = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), answer)
    if power := _POWER_OF_TEN.fullmatch(answer):
        return f"{power[1] or 1}e{power[2] or power[3]}"
    return _values(answer)


def said(answer: str) -> str:
    """Returns what a sentence says: its one formula with what follows, or what comes behind "is"; else all of it.

    Without this the signs around the formula would be lost among the words, and of `the area is $2\\pi$` stay a 2.
    """
    found = list(_FORMULA.finditer(answer))
    if len(found) == 1:
        formula, before, behind = found[0][1] or found[0][2], answer[: found[0].start()], answer[found[0].end() :]
        # "from $5 to $" is no formula, and "the area of $R$ is 5" says what comes later.
        if WORD.search(before) and not WORD.search(_COMMAND.sub("", formula)):
            later = None if _ENDS_IN_IS.search(before) else _IS.search(behind)
            return behind[later.end() :] if later else formula + behind
    words = plain(answer).strip()
    return words[says.end() :] if (says := _SAYS.match(words)) else answer


def plain(text: str) -> str:
    r"""Returns a text without the commands around its words: ` cm ` for `\text{cm}`."""
    return _COMMAND.sub(r" \1 ", text)


def head(text: str) -> str | None:
    r"""Returns the formula that a text without commands begins with, before the first word: `2\pi` of `2\pi cm`.

    It is empty where the text begins with a word, or with no more than numbers or products of them whose result comes
    later (which is better read as a sentence), or where "or" and "and" make it one of several; None where the first
    "word" is a part of the mathematics.
    """
    word = WORD.search(text)
    if word is None or word[0] in ("and", "or"):
        return ""
    before = text[: word.start()].strip(" ,;:")
    shown = re.sub(r"\\(?:times|cdot)\b", "", before) if "=" in text[word.start() :] else before
    if not re.search(r"\\[A-Za-z]|\d.*[\^!A-Za-z]|[\^A-Za-z].*\d", shown):
        return ""
    whole = before.count("{") == before.count("}") and before.count("(") == before.count(")")
    return before if whole and before[-1] not in "+-*/=<>_^\\" else None


def as_tuple(text: str) -> str | None:
    r"""Returns `(1,2)` for a matrix of one row or one column; None for all else."""
    matrix = _VECTOR.fullmatch(text)
    if matrix is None or r"\begin" in matrix[2]:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
    if len(rows) != 1 and any(len(row) != 1 for row in rows):
        return None
    return f"({','.join(cell.strip() for row in rows for cell in row)})"


def _exponent(match: re.Match[str]) -> str:
    """Returns superscripts as an exponent, with the minus of the keyboard."""
    return f"^{{{unicodedata.normalize('NFKC', match[0]).translate(_TABLE)}}}"


def _repeating(match: re.Match[str]) -> str:
    """Returns a repeating decimal as a fraction: its digits less those that stand once, over nines and zeros."""
    whole, once, again = match.groups()
    above = int(whole + once + again) - int(whole + once)
    return rf"\frac{{{above}}}{{{(10 ** len(again) - 1) * 10 ** len(once)}}}"


def _improper(match: re.Match[str]) -> str:
    """Returns a mixed number as one fraction."""
    sign, whole, above, below = match.groups()
    return f"{sign}{int(whole) * int(below) + int(above)}/{below}"


def _values(text: str) -> str:
    """Returns the values of different variables as a tuple, in the order of their names; all else as it is."""
    found = [_VALUE.fullmatch(part) for part in _BETWEEN_VALUES.split(plain(text).strip())]
    pairs = sorted((match[1], match[2].strip()) for match in found if match)
    if len(pairs) < 2 or len({name for name, _ in pairs}) != len(found):
        return text
    return f"({','.join(value for _, value in pairs)})"
