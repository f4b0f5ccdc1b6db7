"""Turns a text into the words by which two questions are compared."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

NUMBER = "0"  # the sign that stands for every number where numbers are not compared

Words = Callable[[str], list[str]]

_LETTERS = re.compile(r"[^\W_]+")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORDS = frozenset(
    [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty",
        "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million", "billion",
    ]
)  # fmt: skip
_COMMANDS = re.compile(
    r"\\(?:begin|end)\s{0,4}\{\w{1,20}\*?\}|\\[hv]space\*?\s{0,4}\{[^}]{0,40}\}|\\[,;:!>\s\\]|~"
    r"|\\(?:q?quad|(?:thin|med|thick|en)space|hfill|newline|left|right|middle|[bB]igg?[lrm]?|(?:display|text|script)style"
    r"|no?limits|text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|bb|cal|scr|frak|normal)?|boldsymbol|bm|operatorname\*?"
    r"|mbox|hbox|emph|underline|boxed|[dtc]?frac|[dt]?binom|sqrt|times|cdots?|[lv]?dots|div|pm|mp|ast|star|bullet|circ|degree"
    r"|l(?:eq?|t)|g(?:eq?|t)|neq?|leqslant|geqslant|equiv|approx|sim|cong|to|(?:long)?(?:right|left)arrow"
    r"|item|hline|n|cap|cup|in|notin|subset(?:eq)?|infty|sum|prod|int|partial|nabla|perp|parallel|mid|[lr](?:floor|ceil|angle|brace|vert))(?![a-z])"
)  # fmt: skip
_THOUSANDS = re.compile(r"(?<=\d)(?:\{?,\}?|\\[,!])+(?=\d{3}(?!\d))")
_EAST_ASIAN = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_SINGLE = re.compile(r"(?<!\S)([a-z]) (?=[a-z](?!\S))")
_GREEK = {
    code: f" {unicodedata.name(chr(code)).rsplit(' ', 1)[-1].lower().replace('lamda', 'lambda')} "
    for code in range(0x3B1, 0x3CA)
    if code != 0x3C2  # the other form of sigma
}
_SIGNS = _GREEK | {ord("∠"): " angle ", ord("△"): " triangle "}


def white_space(text: str) -> list[str]:
    """Returns what is between white space, in lower case: the rule of s1's `decontaminate_util.py`."""
    return text.lower().split()


def letters(text: str) -> list[str]:
    """Returns runs of letters and digits in Unicode's form NFKC, in lower case; punctuation separates words."""
    return _LETTERS.findall(_folded(text))


def sorted_numbers(text: str) -> list[str]:
    """Returns `letters` with neighbouring numbers in ascending order: `from 3 7 1` and `from 7, 1, 3` are the same."""
    found: list[str] = []
    for is_number, run in itertools.groupby(letters(text), str.isdecimal):
        words = list(run)
        # Not by `int`, which refuses more than 4,300 digits.
        found += sorted(words, key=lambda word: (len(word.lstrip("0")), word.lstrip("0"))) if is_number else words
    return found


def number_blind(text: str) -> list[str]:
    """Returns `letters` with every number as the one sign `NUMBER`: `20m` is a number and a word."""
    return _LETTERS.findall(_NUMBERS.sub(f" {NUMBER} ", _folded(text)))


def without_digits(text: str) -> list[str]:
    """Returns `letters` without digits (Light-R1's exact match)."""
    return _LETTERS.findall(re.sub(r"\d+", " ", _folded(text)))


def unmarked(text: str) -> list[str]:
    r"""Returns `letters` of a text whose mathematics may be set in several ways.

    LaTeX's spaces, styles, environments and operators are left out, so `\left(\dfrac{1}{2}\,x\right)` and `(1/2 x)` are
    the same. A number and a letter beside it are two words; letters that stand alone are joined (`A B C` is `ABC`);
    Greek letters have their names; each Chinese or Japanese character is a word.
    """
    text = _THOUSANDS.sub("", _folded(text))
    if "\\" in text or "~" in text:
        text = _COMMANDS.sub(" ", text)
    if not text.isascii():
        text = _EAST_ASIAN.sub(r" \1 ", text.translate(_SIGNS))
    words = " ".join(_LETTERS.findall(re.sub(r"(\d+)", r" \1 ", text)))
    return _SINGLE.sub(r"\1", words).split()


def skeleton(text: str) -> list[str]:
    """Returns `unmarked` with each run of numbers, in digits or in English words, as the one sign `NUMBER`."""
    return without_numbers(unmarked(text))


def without_numbers(words: Sequence[str]) -> list[str]:
    """Returns the `skeleton` of a text whose `unmarked` words these are."""
    found: list[str] = []
    for word in words:
        if not is_number(word):
            found.append(word)
        elif not found or found[-1] != NUMBER:
            found.append(NUMBER)
    return found


def is_number(word: str) -> bool:
    """Whether a word of `unmarked` is a number, in digits or in English words."""
    return word.isdigit() or word in _NUMBER_WORDS


def size(words: Sequence[str]) -> int:
    """Returns how many words are neither numbers nor single letters: formulas say little once numbers are left out."""
    return sum(not word.isdigit() and (len(word) > 1 or not word.isascii()) for word in words)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


FORMS: Mapping[str, Words] = {
    "white_space": white_space,
    "letters": letters,
    "sorted_numbers": sorted_numbers,
    "number_blind": number_blind,
    "without_digits": without_digits,
    "unmarked": unmarked,
    "skeleton": skeleton,
}
# Forms that leave numbers out -> the form with numbers that is nearest to it.
EXACT: Mapping[str, str] = {"number_blind": "letters", "without_digits": "letters", "skeleton": "unmarked"}
