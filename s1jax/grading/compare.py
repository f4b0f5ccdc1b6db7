r"""Decides whether two answers are equal: by text, by exact numbers, or by math-verify (Hugging Face, Apache-2.0).

math-verify parses a formula with latex2sympy2 and compares with sympy. The guards here refuse what it did not read:

- A formula is read whole or not at all, and every letter must appear in the parsed expression.
- Decimals are exact fractions. Numbers are compared at a precision that depends on their size.
- Words, bases, times and lists with "..." are compared as text.
- A decimal of six places equals a formula that rounds to it, as in math-verify: 0.333333 is 1/3, but 0.33 is not, and
  0.999999 is not 1.
- `1,22` is 1.22 if the other side is 1.22, otherwise a list.
- A unit may be missing on one side.
- In a sentence the last number counts, unless words like "not", "twice" or "million" may change it.

A comparison is limited to `CALLS` function calls: the same on every machine, under any load and in any thread. A
comparison that reaches the limit, or is too large for it (`BITS` of numbers, `TERMS` of products, `DEPTH` of brackets),
is undecided.
"""

import fractions
import functools
import logging
import math
import re
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from s1jax.errors import MissingPackageError
from s1jax.grading.extract import LONGEST

VERSION = 3  # raise it with every change that can move a verdict
CALLS, BITS, TERMS, DEPTH = 3_000_000, 60_000, 4_000, 10

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][+-]?\d\d?)?")
_UNIT = re.compile(
    r"(?P<value>.*[\d})])\s*\\(?:text|mbox|mathrm|textrm|textbf)\s*\{(?P<unit>[^{}]*[a-zA-Z][^{}]*)\}\s*"
    r"(?P<power>\^\s*\{?\d\}?)?"
    r"|(?P<number>[-+]?[\d.,/^{}-]*[\d}])(?:\s+(?P<short>[mgslhJNVW])"
    r"|\s*(?P<words>[ck]?m[²³]|[a-zA-Z]{2}(?:[a-zA-Z ./^]|(?<=[a-z^])\d)*))"
)
_WORD = r"\\(?:text|mbox|mathrm|operatorname)\w*\s*\{[^{}]*[a-zA-Z]{2}|(?<![a-zA-Z\\])[a-zA-Z]?[a-z]{3}[a-z]*(?![({_^])"
_LAST = re.compile(r"(?<![\w.,^/*+-])(-?\d[\d,]*(?:\.\d+|/\d+)?(?:\s?\\?%)?)(?:€|[ck]?m²)?(?![\w^/*+=!-])\D*$")
_CHANGED = re.compile(  # the number is "#"
    r"\b(?:not|cannot|never|nor?|neither|none|nicht|pas|yes|except\w*|excluding|but|unless|without|wrong|false|incorrect"
    r"|than|between|at (?:least|most))\b|n['’]t\b|\b(?:(?<!total )of|(?<!equal )(?<!s )to|twice|double|triple|half|root"
    r"|log|plus|minus|negative|times|mod|divi\w+ by|first|over|under|above|below|after|before|past|beyond|exceeds?)\W*#"
    r"|#.*\b(?:squared|cubed|doubled|tripled|halved|factorial|root|power|plus|minus|times\s+\w|mod|choose|pi|dozens?|bn"
    r"|half|halves|thirds?|quarters?|(?:ten|hundred|thousand|\w*illion)(?:th)?s?|(?:four|fif|six|seven|eigh|nin)ths?)\b"
    r"|#.*\b(?:more|less|fewer|greater|higher|lower|over|up|above|below|beyond)\W*$"
)
_SAYS = re.compile(r"[:=]|\b(?:is|are|was|were|it['’]s|equals?|gets?|makes?|earns?|pays?|ha[sd]|have|so|therefore)\b")
_MEASURE = re.compile(r"(\\circ|°|degree)|(radian)|(\\\$|^\$[^$]*$|dollar)|(\bcents?\b)|(€|\beuro)|(£)|(¥|\byen\b)")
_UNLIKE = re.compile(  # two clock times, a clock time with something that is not a ratio, a set with a tuple
    r"(\d?\d:[0-5]\d|[^:]+) \d?\d:[0-5]\d|\d?\d:[0-5]\d [^:]+|\\\{[^()]*\\\} \([^()]*\)|\([^()]*\) \\\{[^()]*\\\}"
)
_AS_TEXT = re.compile(
    r"[\d)]\s*_|(?<![_\d])(?<!frac )\d+\s+\d|'|\\[lcd]?dots|\.\.|\\(?:prime|nmid|mid|not)(?![a-z])|\d([/:.])\d+\1\d"
)
_TIDY = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"\\!\s*|\\[()]", ""), (r"\*\*", "^"), (r"[−–]", "-"), (r"π", r"\\pi "),
    (r"\\varnothing|∅", r"\\emptyset "), (r"(?<![a-zA-Z])(?:minus|negative)\s+(?=\d)", "-"),
    (r"\\(?:left|right|displaystyle|[,;:]|quad|qquad)(?![a-zA-Z])|\\?\$|^[€£¥]|€$|~", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:mathrm|text|mathit)\s*\{\s*([ied])\s*\}", r" \1 "),
    (r"^\\(?:text|textbf|mathbf|mathrm|mbox)\s*\{([^{}]*)\}$", r"\1"),
    (r"(?i)^(?:there (?:is|are) )?no solutions?$", "no solution"),
    (r",?\s*\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|,?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", ", "),
    (r"\\?(?<![a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\?(?<![a-zA-Z])exp\s*\(([^()]*)\)", r"e^{\1}"),
    (r"(?<![a-zA-Z\\])(pi|sin|cos|tan|cot|sec|csc|ln|log|theta|alpha|beta|lambda)(?![a-zA-Z])", r"\\\1 "),
    (r"(?<![a-zA-Z\\])infinity(?![a-zA-Z])|∞", r"\\infty "),
    (r"\^(-\d+|\d\d+)", r"^{\1}"), (r"^\s*[a-zA-Z]\w*\s*\\approx", ""), (r"(?<![\w.^_{])1(?=[a-df-z](?![a-z]))", ""),
    (r"(\d)(?:\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\s*\bdegrees?\b)", r"\1"),
    (r"(?<=\d)(?:\{,\}\s*| )(?=\d{3}(?!\d))(?=[\d, {}]*$)(?<![^\d, {}].)", ","), (r"\s+", " "),
)]  # fmt: skip


class _LimitError(BaseException):
    """The limit is reached. Not an Exception, because math-verify and sympy catch those and continue."""


def grader() -> str:
    """Returns name and version of the grader, for results.

    Raises:
      MissingPackageError: math-verify is not installed; so a task says it before anything is sampled.
    """
    try:
        return f"s1jax grading {VERSION}, math-verify {metadata.version('math-verify')}"
    except metadata.PackageNotFoundError:
        raise MissingPackageError("Grading of mathematical answers", "math-verify", "eval") from None


@functools.lru_cache(maxsize=1 << 14)
def equal(answer: str, right: str) -> bool | None:
    """Returns whether two bare answers are equal; None if the comparison did not end within its limit."""
    if max(len(answer), len(right)) > LONGEST:
        return answer == right
    words = any(re.fullmatch(r"\s*\\(?:text|mbox)\w*\s*\{[a-zA-Z ]{2,}\}\s*", text) for text in (answer, right))
    measures = [{match.lastindex for match in _MEASURE.finditer(text)} for text in (answer, right)]
    joined = [set(re.findall(r"(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])", text)) for text in (answer, right)]
    if all(measures) and measures[0].isdisjoint(measures[1]):
        return False
    if all(joined) and joined[0] != joined[1] and re.search(r"[<>]|\\[lg]e|^\D*$", answer):  # x<1 or x>2, A or B
        return False
    answer, right = tidy(answer), tidy(right)
    if not answer or not right:
        return False
    if _bare(answer) == _bare(right):
        return True
    if words and not re.search(r"\d", answer + right):
        return False
    one, other = number(answer), number(right)
    if one is not None and other is not None:
        return one == other
    if re.fullmatch(r"(-?\d),(\d\d) \1\.\2|(-?\d)\.(\d\d) \3,\4", f"{answer} {right}"):
        return True
    if _UNLIKE.fullmatch(f"{answer} {right}"):
        return False
    parts = [[number(part.strip()) for part in text.split(",")] for text in (answer, right)]
    if all(part is not None for part in parts[0] + parts[1]):  # math-verify drops duplicates in lists
        return sorted(map(str, parts[0])) == sorted(map(str, parts[1]))
    if "%" in answer + right:  # 50% is 50 as well as 0.5
        one, other = (number(re.sub(r"\s*\\?%$", "", text)) for text in (answer, right))
        if one is not None and other is not None:
            return (
                one == other or ("%" not in right and one == 100 * other) or ("%" not in answer and other == 100 * one)
            )
    (value, unit), (other_value, other_unit) = _split(answer), _split(right)
    if unit or other_unit:
        return False if unit and other_unit and unit != other_unit else equal(value, other_value)
    said = [bool(re.search(_WORD, re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}", "", text))) for text in (answer, right)]
    if any(said):
        text, target = (answer, right) if said[0] else (right, answer)
        return not all(said) and (last := _last(text)) is not None and equal(last, target)
    return _math_equal(answer, right)


def _last(text: str) -> str | None:
    """Returns the last number of a sentence; None if words or an earlier number may change it."""
    if last := _LAST.search(text):
        *earlier, before = re.split(r"\d", text[: last.start()])
        if not _CHANGED.search(f"{before}#{text[last.end(1) :]}".lower()) and (not earlier or _SAYS.search(before)):
            return re.sub(r"^(-?\d+),(\d\d)$", r"\1.\2", last[1])
    return None


def number(text: str) -> fractions.Fraction | None:
    """Returns the exact value of a plain number such as `1,234`, `-0.50`, `.5` or `0,5`; None for anything else."""
    text = re.sub(r"^(-?(?:0,\d+|\d{4,},\d\d))$", lambda match: match[1].replace(",", "."), text.rstrip("."))
    match = _NUMBER.fullmatch(text)
    return fractions.Fraction(text.replace(",", "")) if match and text[-1:].isdigit() else None


def tidy(text: str) -> str:
    """Returns an answer without meaningless parts: spacing commands, currency, styles of fractions."""
    text = text.lstrip(" *`").rstrip(" *`.。")  # before `**` is taken for a power
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.lstrip(" *`").rstrip(" *`.。")


def _bare(text: str) -> str:
    """Returns the form that is compared as text: names of a list sorted and lower case, formulas without blanks."""
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    if re.fullmatch(r"\(?[A-Za-z]\)?|[^\\\d=+*/^_]*[A-Za-z]{2}[^\\\d=+*/^_]*", text):
        return " ".join(sorted(part.strip(" ()") for part in text.casefold().split(",") if part.strip()))
    return re.sub(r"([_^]|\\pmod)\{(\w)\}", r"\1\2", re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text))


def _split(text: str) -> tuple[str, str]:
    """Returns value and unit of an answer; the unit is empty if it has none."""
    match = _UNIT.fullmatch(text)
    if match is None or _CHANGED.search(f"#{match['unit'] or match['words'] or ''}".lower()):
        return text, ""
    unit = (match["unit"] or match["short"] or match["words"]) + (match["power"] or "")
    unit = re.sub(r"[\s.{}]|(?<=[a-zA-Z]{2})s(?=\^|\s*$)", "", unit).lower()
    return (match["value"] or match["number"]).strip(), unit


def _rounded(*texts: str) -> bool:
    """Whether one text is a decimal of six places, not a small one, and the other is not a plain number."""
    text = " ".join(texts)
    small = re.search(r"(?<!\d)0?\.00|10\s*\^\s*\{?-", text)
    return not small and bool(re.search(r"\.\d{6}", text) and re.search(r"[\\/^]", text))


def _limited(calls: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of the function, or None if it needs more than `calls` calls."""
    count = 0

    def profile(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > calls:
            raise _LimitError

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        return function(*arguments)
    except (_LimitError, RecursionError, MemoryError):
        return None
    finally:
        sys.setprofile(before)


@functools.cache
def _library() -> Any:
    """Imports math-verify, which takes seconds, and makes it build its tables."""
    try:
        import math_verify
    except ModuleNotFoundError:
        raise MissingPackageError("Grading of mathematical answers", "math-verify", "eval") from None
    from latex2sympy2_extended import NormalizationConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    how = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = [math_verify.LatexExtractionConfig(normalization_config=how)]
    math_verify.parse("$1+x$", config, parsing_timeout=None)
    return math_verify, config


def _math_equal(answer: str, right: str) -> bool | None:
    """Asks math-verify about two formulas: exactly, and also rounded if a decimal is long enough."""
    verdict: bool | None = False
    for exact in (True, False) if _rounded(answer, right) else (True,):
        target, given = _read(right, exact), _read(answer, exact)
        if target is None or given is None or target is False or given is False:
            return None if target is None or given is None else False
        verdict = _limited(CALLS, _verify, target, given, exact, "\\in " not in right)
        if verdict:
            break
    return verdict


def _verify(target: Any, given: Any, exact: bool, relations: bool) -> bool:
    precision = 15 + (_size(target)[0] + _size(given)[0]) // 3 if exact else 15
    settings = {"numeric_precision": precision, "timeout_seconds": None, "allow_set_relation_comp": relations}
    return bool(_library()[0].verify(target, given, **settings))


@functools.lru_cache(maxsize=256)
def _read(text: str, exact: bool) -> Any:
    """Returns `_parse` of a text within a larger limit, because the first formulas build tables."""
    _library()
    return _limited(3 * CALLS, _parse, text, exact)


def _parse(text: str, exact: bool) -> Any:
    """Returns the parsed form of a whole formula; False if latex2sympy2 can't read it or left letters out."""
    import sympy
    from sympy.core.function import AppliedUndef

    depth = [sum((c in "([{") - (c in ")]}") for c in text[:i]) for i in range(len(text) + 1)]
    if max(depth) > DEPTH:
        raise _LimitError
    if _AS_TEXT.search(text):
        return False
    if exact:
        text = re.sub(r"(?<![\d.,])(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", text)
    math_verify, config = _library()
    found = math_verify.parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    if not found or isinstance(found[0], str) or found[0] in (sympy.zoo, sympy.nan):
        return False
    if text.count("=") > 1 and "," not in text:  # math-verify may read only the end of a chain
        text = text.rpartition("=")[2]
    command = r"\\(?:begin|end|mathbb|mathrm|operatorname)\s*\{[^{}]*\}(?:\{[clr|]+\})?|\\[a-zA-Z]+"
    letters = set(re.findall("[a-ce-hj-z]", re.sub(command, " ", text).lower()))
    names = [getattr(atom, "name", "") or atom.func.__name__ for atom in found[0].atoms(sympy.Symbol, AppliedUndef)]
    if letters - set("".join(names).lower()) - {"e"}:
        return False
    number_i = not found[0].atoms(sympy.Sum, sympy.Product, AppliedUndef)
    return found[0].xreplace({sympy.Symbol("i", real=False): sympy.I}) if number_i else found[0]


def _size(value: Any) -> tuple[int, int]:
    """Returns upper bounds for the bits of the numbers in a formula and for its terms; raises if one is too large."""
    parts = [_size(part) for part in (value if hasattr(value, "shape") else value.args)]
    bits, terms = sum(part[0] for part in parts), max(1, sum(part[1] for part in parts))
    kind = type(value).__name__
    if getattr(value, "is_Rational", False):
        bits = value.p.bit_length() + value.q.bit_length() - 1
    elif kind in ("Pow", "exp", "factorial", "binomial", "gamma") and value.args[-1 if kind == "Pow" else 0].is_number:
        argument = value.args[-1 if kind == "Pow" else 0]
        times = math.ceil(abs(complex(argument))) if _size(argument)[0] < 32 else BITS + 1
        bits = bits + times * max(2, parts[0][0])
        terms = math.comb(min(times, TERMS) + parts[0][1], parts[0][1]) if parts[0][1] > 1 else 1
    elif kind == "Mul":
        terms = math.prod(part[1] for part in parts)
    if bits > BITS or terms > TERMS:
        raise _LimitError
    return bits, terms
