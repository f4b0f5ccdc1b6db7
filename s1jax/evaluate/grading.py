r"""Final answers: found in a model's text, and compared with the right one.

An answer is marked by `\boxed{...}`, by "Final Answer:" or "Answer:", or by GSM8K's `####`. The last mark of a text
wins, because a model that corrects itself does so further down. Equality is decided exactly for plain numbers and by
math-verify (Hugging Face, Apache-2.0) for everything else: fractions, roots, intervals, sets, units.
"""

from __future__ import annotations

import contextlib
import fractions
import logging
import math
import re
import signal
import string
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s1jax.config import InputError
from s1jax.evaluate import notation, units

# Seconds that one comparison by math-verify may take: "9^{9^{9}}" would otherwise never end.
TIMEOUT = 3
# Characters of an answer that are looked at; a model that never stops can write a very long one.
LONGEST = 400

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?P<bare>[^\s{$]+)")
# "Answer:" also stands inside "Final Answer:" and "**Answer:**", and not in "the answer: is clear". A GSM8K mark begins
# its line, and so does a heading of Markdown: with a letter behind it, it is a mark in the last line only.
_MARK = re.compile(
    r"(?:final\s+)?\banswer\s*(?:\*\*)?\s*[:\uff1a](?:\*\*)?(?!\s+is\b)|^[ \t]*####(?!#)(?=[^\nA-Za-z]*$|[^\n]*\s*\Z)",
    re.IGNORECASE | re.MULTILINE,
)
# A line that only opens or closes mathematics or code, or is an empty box.
_FENCE = re.compile(r"\\[\[\]()]|\$+|`{3,}\w*|\$*\\(?:boxed|fbox)\s*\{\s*\}\$*")
# Names of the choices of a question, in order.
LETTERS = string.ascii_uppercase
# Behind a number and at most one word: another answer ("7 or 8 m", "5 hours and 30 minutes", "x=1 or x=2"), or what
# makes it a bound ("5 or more").
_JOINED = r"\d[^A-Za-z\d]*(?:[A-Za-z]+[^A-Za-z\d]+)?\b"
_SEVERAL = re.compile(_JOINED + r"(?:or|and)\b\W*(?:[a-z]\s*=\W*)?\d[\d.,/]*\D*$")
# Two amounts that make one ("1 hour 30 minutes", "5 ft 3 in").
_COMPOUND = re.compile(r"\d\s*[A-Za-z]+[\s,]+\d[\d.,/]*\s*[A-Za-z][A-Za-z\s]*\W*$")
_BOUND = re.compile(_JOINED + r"or\s+(?:more|less|fewer|greater|higher|lower|larger|smaller|above|below|over|under)\b")
# What ends an AIME answer that is an angle.
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|°)$")
# Digits and their base: `4210_{5}`.
_BASE = re.compile(r"(\w+)_\{?(\d+)\}?")
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:(?<=\d)[eE][+-]?\d{1,3})?")
_PERCENT = re.compile(r"\s*\\?%$")
# A time of day, which is no ratio: it has two digits behind the colon, or a half of the day.
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?\s*(?:([AaPp])\.?\s?[Mm]\b\.?)?")
# Nothing but words: three letters or two capitals in a row somewhere.
_WORDS = re.compile(r"(?=.*(?:[A-Za-z]{3}|[A-Z]{2}))[A-Za-z][A-Za-z\s.,']*")
# A number and a noun: `12 red apples`.
_COUNT = re.compile(r"[-+\d.,/]*\d\s+([A-Za-z][A-Za-z\s.'-]*)")
# A letter right behind a number is a variable as well as a unit: `6t`.
_TERM = re.compile(r"\d[A-Za-z](?![A-Za-z])")
# A tuple or an interval, and a set.
_IN_ORDER, _SET = re.compile(r"(?:\\left)?\([^()]*,[^()]*\)"), re.compile(r"(?:\\left)?\\\{[^()]*\}")


def boxed(text: str) -> str | None:
    r"""Returns what the last complete `\boxed{...}` of `text` holds; None where there is none.

    Braces are matched, so `\boxed{\frac{1}{2}}` gives `\frac{1}{2}`; `\boxed 5` gives `5`; a box that holds nothing
    but a box gives what is in the inner one. A box whose braces never close (a cut answer) does not count, and an empty
    one only where no other does.
    """
    content, after = None, 0
    closed = _closed_braces(text)
    for match in _BOXED.finditer(text):
        if match.start() < after:
            continue  # inside the box before it
        if match["bare"]:
            content, after = match["bare"], match.end()
        elif match.end() in closed:
            after = closed[match.end()]
            start, end = _within(text, match.end() + 1, after)
            while (inner := _BOXED.match(text, start, end)) and closed.get(inner.end()) == end - 1:
                start, end = _within(text, inner.end() + 1, end - 1)
            content = text[start:end] or content or ""
    return content


def _within(text: str, start: int, end: int) -> tuple[int, int]:
    """Returns `start` and `end` without the white space inside."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _closed_braces(text: str) -> dict[int, int]:
    """Returns where the braces of a text are closed that are."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # `\{` and `\}` are letters of the answer, not braces
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            found[opened.pop()] = match.start()
    return found


def extract(text: str) -> str | None:
    r"""Returns the answer that the last mark of `text` gives, or None where no mark is followed by anything.

    A box after the last "Answer:" or `####` (which is no heading: with words behind it, it is in the last line) is the
    answer; without such a box it is the first line with anything in it after the mark, where `\[`, `$$` and the like
    alone count as nothing. Without any mark it is the last box.
    """
    for mark in reversed(list(_MARK.finditer(text))):
        tail = text[mark.end() :]
        answer = boxed(tail) or next(_lines(tail), "")
        if answer:
            return answer
    return boxed(text)


def _lines(text: str) -> Iterator[str]:
    """Yields the lines that hold more than asterisks or the beginning or end of mathematics or code."""
    for line in text.splitlines():
        line = line.strip(" \t*")
        if line and not _FENCE.fullmatch(line):
            yield line


def reference(row: Mapping[str, Any], where: str) -> str:
    r"""Returns the right answer of a row of a task file: its `answer`, or else its `solution`.

    Args:
      row: a JSON object. The field may hold the bare answer (text or number) or a worked solution that ends in
        GSM8K's `#### x` or contains `\boxed{x}` or "Answer: x".
      where: name of the row in errors, for example `gsm8k.jsonl:3`.

    Raises:
      InputError: neither field is there, or it holds several lines and no marked answer, or a longer one than what is
        looked at of a model's.
    """
    for field in ("answer", "solution"):
        value = row.get(field)
        if value is None or isinstance(value, (bool, list, dict)) or not str(value).strip():
            continue
        if isinstance(value, float) and not math.isfinite(value):  # NaN, which Python reads in JSON
            continue
        text = str(value).strip()
        answer = extract(text) or text
        if "\n" in answer:
            raise InputError(
                f"{where}: `{field}` has several lines and no final answer; end it in a line `#### ANSWER` or give "
                "the bare answer."
            )
        if len(answer) > LONGEST:
            raise InputError(
                f"{where}: the answer in `{field}` has {len(answer)} characters, and no more than {LONGEST} of a"
                " model's are looked at; give a shorter one."
            )
        return answer
    raise InputError(f"{where}: no answer to grade against; give the row a field `answer` or `solution`.")


def correct(text: str, right: str) -> bool:
    """Whether the answer in a model's `text` equals `right`.

    Where `text` carries no mark its last line with anything in it is taken for the answer. Comparisons that
    take longer than `TIMEOUT` count as wrong. The timeouts use signals, which Python allows in the main thread only:
    in other threads there are none, so grade what a model wrote in the main thread.
    """
    return equal(final(text), right)


def final(text: str) -> str:
    """Returns the answer that `text` gives: what `extract` finds, else its last line; at most `LONGEST` characters."""
    answer = extract(text)
    if answer is None:
        answer = next(reversed(list(_lines(text))), "")
    return answer[-LONGEST:]


def letter(text: str, choices: Sequence[str]) -> str | None:
    r"""Returns the letter of the choice that `text` gives, or None where it gives none or more than one.

    Looked for in the final answer, in this order: the whole text of one of the choices; nothing but a letter (`C`,
    `(C)`, `option c`, `\boxed{\text{C}}`); a letter in front (`C) 12 m`, `Option C: 12 m`, `C - 12 m`); one behind
    "is", "option" or "choice"; one in parentheses; the only letter that stands alone, where "A" and "I" before most
    words are no letters; and last what equals one of the choices. A letter that is denied ("not A", "all but A", "A is
    wrong") does not count.

    Args:
      text: an answer of a model.
      choices: texts of A, B, C, ... in this order.
    """
    answer = notation.plain(notation.normalize(final(text))).strip().strip("*'\"`\u2018\u2019").strip()
    letters = LETTERS[: len(choices)]
    texts = [notation.plain(notation.normalize(choice)).strip().casefold() for choice in choices]
    if len(answer) > 1 and texts.count(answer.casefold()) == 1:  # "Vitamin C" need not be C
        return letters[texts.index(answer.casefold())]
    bare = re.fullmatch(r"(?:(?:option|choice)\s+)?[(\[{]?([A-Z])[)\]}]?[.:,]?", answer, re.IGNORECASE)
    if bare:
        return bare[1].upper() if bare[1].upper() in letters else None
    one, any_ = f"([{letters}])", rf"\(?\b[{letters}]\b\)?"
    others = r"(?:\s+of\s+(?:the\s+\w+|them|these))?(?:\s+(?:options?|choices?|answers?|others?))?"
    but = rf"(?:[Aa]ll|[Aa]ny\w*|[Ee]very\w*){others}\s+(?:but|except(?:\s+for)?)"
    denied = (
        rf"\b(?:[Nn]either|[Nn]ot|nor|{but})\s+{any_}(?:(?:,|\s+n?or|\s+and)\s+{any_})*"
        rf"|{any_}\s+is\s+(?:wrong|incorrect|false|not)\b"
    )
    goes_on = "(?:or|and|is|but|not|because|since|as)"  # behind A and I that are letters
    claimed = re.sub(denied, "", answer)
    for pattern in (
        rf"^(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+)?\(?{one}(?:[).:](?=\s|$)|\)?\s+[-\u2013\u2014]\s)",
        rf"\b(?:is|[Oo]ption|[Cc]hoice|[Aa]nswer)\s*:?\s*\(?{one}\b",
        rf"\({one}\)",
        rf"(?<![\w'\\])(?![AI]\s+(?!{goes_on}\b)[a-z]){one}(?![\w'])",
    ):
        found = set(re.findall(pattern, claimed))
        if found:
            return found.pop() if len(found) == 1 else None
    same = [name for name, choice in zip(letters, choices, strict=True) if equal(answer, choice)]
    return same[0] if len(same) == 1 else None


def equal(answer: str, right: str) -> bool:
    """Whether two bare answers mean the same: as text, as exact numbers, or to math-verify; see `correct`.

    A percentage is as good as its number (50% and 50), and math-verify takes a decimal of six places and more for the
    fraction that it rounds: 0.3333333 is 1/3 to it, 0.33 is not. A unit may be missing on one side; two of them have to
    be the same (5 m and 5 meters), and of other nouns one (12 apples and 12 red apples). Words alone are compared as
    text. A vector is the same as a matrix of one row or column and as a tuple. Of a sentence counts what
    `notation.said` finds. More than `LONGEST` characters are compared as text.
    """
    if max(len(answer), len(right)) > LONGEST:
        return answer.strip().casefold() == right.strip().casefold()
    answer, right = (notation.normalize(notation.said(text)) for text in (answer, right))
    if not answer or not right:
        return False
    if answer.casefold() == right.casefold():
        return True
    numbers = _number(answer), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    plain = notation.plain(answer).strip(), notation.plain(right).strip()
    if _WORDS.fullmatch(plain[0]) and _WORDS.fullmatch(plain[1]):
        return _names(plain[0]) == _names(plain[1])
    if _differ_in_kind(*plain):
        return False
    times = _TIME.fullmatch(plain[0]), _TIME.fullmatch(plain[1])
    if times[0] and times[1]:
        return _same_time(*times[0].groups(), *times[1].groups())
    (one, unit), (other, second) = units.split(answer), units.split(right)
    if unit and second:
        return not units.differ(unit, second) and equal(one, other)
    counts = _COUNT.fullmatch(plain[0]), _COUNT.fullmatch(plain[1])
    if counts[0] and counts[1] and not _nouns(counts[0][1]) & _nouns(counts[1][1]):  # apples and oranges
        return False
    sides = _number(one), _number(other)
    if bool(unit) != bool(second) and None not in sides and not _TERM.search(f"{answer} {right}"):
        return sides[0] == sides[1]
    vectors = notation.as_tuple(answer), notation.as_tuple(right)
    if (vectors[0] is None) != (vectors[1] is None):
        return _math_equal(vectors[0] or answer, vectors[1] or right)
    shares = _PERCENT.sub("", answer), _PERCENT.sub("", right)
    if shares != (answer, right) and equal(*shares):  # math-verify compares whole percentages only
        return True
    bases = _BASE.fullmatch(answer), _BASE.fullmatch(right)
    if bases[0] and bases[1]:  # math-verify reads 12_3 as 12
        return bases[0].groups() == bases[1].groups()
    return _math_equal(answer, right)


def _names(text: str) -> list[str]:
    """Returns the names of a list in words, which has no order. (To math-verify "cat" is a product, as is "act".)"""
    parts = re.sub(r"\band\b", ",", text.casefold()).split(",")
    return sorted(part.strip() for part in parts if part.strip())


def _differ_in_kind(one: str, other: str) -> bool:
    """Whether one of two answers is a bound and the other is none, or one in order and the other a set."""
    if (_BOUND.search(one) is None) != (_BOUND.search(other) is None):
        return True
    return any(_IN_ORDER.fullmatch(a) and _SET.fullmatch(b) for a, b in ((one, other), (other, one)))


def _same_time(hour: str, minute: str, half: str, hour2: str, minute2: str, half2: str) -> bool:
    """Whether two times of day are the same, where one of them may lack its half of the day."""
    if half or half2:
        minute, minute2 = minute or "00", minute2 or "00"
    known = {text.lower() for text in (half, half2) if text}
    return int(hour) == int(hour2) and minute == minute2 and len(known) < 2


def _nouns(text: str) -> set[str]:
    """Returns the words of a text, in the singular as far as that has no "s"."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.casefold())}


def whole_number(answer: str) -> int | None:
    r"""Returns the whole number that a bare answer is, such as `025`, `25.0`, `$25$` or `25^\circ`; or None."""
    number = _number(_DEGREES.sub("", notation.normalize(answer))) if len(answer) <= LONGEST else None
    return int(number) if number is not None and number.denominator == 1 else None


def _number(text: str) -> fractions.Fraction | None:
    """Returns a plain number such as `-1,234.50` or `1e3` exactly; None for all else, such as `1/2` or `12 apples`."""
    if not re.search(r"\d", text) or not _NUMBER.fullmatch(text):
        return None
    return fractions.Fraction(text.replace(",", ""))


def _math_equal(answer: str, right: str) -> bool:
    """Asks math-verify, which is imported here because it takes seconds and only mathematics needs it."""
    import math_verify

    # It warns that its own timeouts are off: these raise once, and an exception in a callback is lost, see _time_limit.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def readings(text: str) -> list[Any]:
        number = _number(text)
        if number is not None and number.denominator == 1:  # 4e3 is no product of e
            text = str(number)
        elif number is not None:
            text = re.sub("[eE](.+)", r"\\times 10^{\1}", text)
        # A sentence ("12 apples") is read for the number in it, too, unless it gives several. Mathematics is not: "5x"
        # and "7!" are no 5 and 7, not even with a word behind them.
        plain = notation.plain(text)
        formula = notation.head(plain)
        several = _SEVERAL.search(plain) or _COMPOUND.search(plain)
        if formula and not several:
            forms = [f"${formula}$"]
        elif formula is None or several or not notation.WORD.search(plain):
            forms = [f"${text}$"]
        else:
            forms = list(dict.fromkeys([f"${text}$", text, plain]))
        return [found for form in forms if (found := math_verify.parse(form, parsing_timeout=None))]

    try:
        with _time_limit(TIMEOUT):
            targets, guesses = readings(right), readings(answer)
            pairs = [(a, b) for a in targets for b in guesses]
            # It reads `-1<x<5` as the interval (-1,5) on one side only.
            return any(math_verify.verify(*pair, timeout_seconds=None) for a, b in pairs for pair in ((a, b), (b, a)))
    except _TooLongError:
        return False


class _TooLongError(BaseException):
    """Time is up. No Exception, because math-verify and sympy catch those and go on."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises _TooLongError in what runs inside after so many seconds, in the main thread only.

    And again every tenth of a second: Python drops an exception that a signal raises in a destructor or callback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def stop(*_: Any) -> None:
        if running:
            raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
