"""Reads the measured columns of a row, whoever wrote them, as the types that rules take."""

from __future__ import annotations

import collections
import decimal
import math
from collections.abc import Callable, Mapping
from typing import Any

from s1jax.errors import UserError

HIDDEN = ("_content", "_columns", "_drop", "trace_characters")  # columns of stages alone, which no output has
# Columns of other programs: s1's featurization.py, open-r1 and OpenThoughts.
_ALIASES = {
    "correct": ("is_correct", "isgeminicorrect"),
    "trace_tokens": ("gemini_length", "reasoning_tokens"),
    "source_type": ("source",),
}
_STUDENTS = ("isqwen7bcorrect", "isqwen32bcorrect")
_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def columns(
    record: Mapping[str, Any], place: str, aliases: collections.Counter[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """Returns all columns of a row that are not empty, with those of other programs under our names as well.

    CSV has no types, so numbers and truth values are read out of texts, too; a text without characters is missing.

    Args:
      record: the row.
      place: what messages call the row.
      aliases: counts (their name, our name) of columns that are read under another name.

    Raises:
      UserError: a measured column has a value that cannot be one; or a column has a name of `HIDDEN`.
    """
    aliases = collections.Counter() if aliases is None else aliases
    found = {str(name): value for name, value in record.items() if not _is_missing(value)}
    for name in HIDDEN:
        if name in found:
            raise UserError(f"{place} has a column {name}, a name that curation keeps for itself; rename the column.")
    for name, (parse, what) in _TYPES.items():
        if name in found and (value := _parsed(found.pop(name), parse, what, f"{place}: {name}")) is not None:
            found[name] = value
    for ours, theirs in _ALIASES.items():
        parse, what = _TYPES[ours]
        for name in theirs:
            if ours in found or name not in found or (ours == "source_type" and not isinstance(found[name], str)):
                continue
            value = _parsed(found[name], parse, what, f"{place}: {name}")
            # Endpoints that do not count the tokens of thinking say 0.
            if value is not None and (ours != "trace_tokens" or value):
                found[ours] = value
                aliases[name, ours] += 1
    if "pass_rate" not in found and all(name in found for name in _STUDENTS):
        students = [_parsed(found[name], *_TYPES["correct"], f"{place}: {name}") for name in _STUDENTS]
        if None not in students:
            found["pass_rate"], found["pass_tries"] = sum(map(bool, students)) / len(students), len(students)
            aliases[" and ".join(_STUDENTS), "pass_rate"] += 1
    return found


def _parsed(value: Any, parse: Callable[[Any], Any], what: str, name: str) -> Any:
    if isinstance(value, str) and not value.strip():
        return None
    try:
        return parse(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} is {value!r:.60}; it must be {what}; correct it, or rename the column.") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal | str):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _share(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def _count(value: Any) -> int:
    number = _number(value)
    if number < 0 or number != int(number):
        raise ValueError
    return int(number)


def _tries(value: Any) -> int:
    number = _count(value)
    if not number:
        raise ValueError
    return number


def _verdict(value: Any) -> bool:
    if not isinstance(value, bool | int | float | str):
        raise TypeError
    word = str(value).strip().lower()
    if word not in _WORDS:
        raise ValueError
    return _WORDS[word]


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return str(value)


_TYPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pass_rate": (_share, "a number from 0 to 1"),
    "pass_tries": (_tries, "a whole number from 1 on"),
    "trace_tokens": (_count, "a whole number from 0 on"),
    "completion_tokens": (_count, "a whole number from 0 on"),
    "correct": (_verdict, "true or false"),
    "domain": (_label, "a text"),
    "source_type": (_label, "a text"),
    "finish_reason": (_label, "a text"),
}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
