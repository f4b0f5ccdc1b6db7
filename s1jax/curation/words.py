"""Turns a text into the words by which two questions are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

NUMBER = "0"  # the sign that stands for every number where numbers are not compared
_LETTERS = re.compile(r"[^\W_]+")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")

Words = Callable[[str], list[str]]


def white_space(text: str) -> list[str]:
    """Returns what is between white space, in lower case: the rule of s1's `decontaminate_util.py`."""
    return text.lower().split()


def letters(text: str) -> list[str]:
    """Returns runs of letters and digits in Unicode's form NFKC, in lower case; punctuation separates words."""
    return _LETTERS.findall(_folded(text))


def number_blind(text: str) -> list[str]:
    """Returns `letters` with every number as the one sign `NUMBER`: `20m` is a number and a word."""
    return _LETTERS.findall(_NUMBERS.sub(f" {NUMBER} ", _folded(text)))


def without_digits(text: str) -> list[str]:
    """Returns `letters` without digits (Light-R1's exact match)."""
    return _LETTERS.findall(re.sub(r"\d+", " ", _folded(text)))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


FORMS: Mapping[str, Words] = {
    "white_space": white_space,
    "letters": letters,
    "number_blind": number_blind,
    "without_digits": without_digits,
}
