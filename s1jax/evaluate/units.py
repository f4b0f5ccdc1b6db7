r"""Units behind the number of an answer: `5 m`, `5\text{ meters}` and `5\,\mathrm{m}` have the same, `5 km` another."""

from __future__ import annotations

import re

# One unit a line: its symbols, as they are written, and then its words, in any case and with or without an "s". K is
# left out because it is also a thousand.
_UNITS = """
mm: millimeter millimetre
cm: centimeter centimetre
m: meter metre
km: kilometer kilometre
in: inch inche
ft: foot feet
yd: yard
mi: mile
mg: milligram
g: gram
kg: kilogram
lb lbs: pound
oz: ounce
t: ton tonne
ms: millisecond
s sec: second
min mins: minute
h hr hrs: hour
d: day
wk: week
mo: month
yr yrs: year
mL ml: milliliter millilitre
L l: liter litre
gal: gallon
qt: quart
pt: pint
USD: dollar
: cent
EUR: euro
deg: degree
rad: radian
J: joule
kJ: kilojoule
eV: electronvolt
cal: calorie
kcal: kilocalorie
N: newton
W: watt
kW: kilowatt
kWh: kilowatthour
Hz: hertz
kHz: kilohertz
MHz: megahertz
V: volt
A: ampere amp
C: coulomb
: kelvin
Pa: pascal
kPa: kilopascal
mol: mole
nm: nanometer nanometre
"""
_SYMBOLS: dict[str, str] = {}
_WORDS: dict[str, str] = {}
for _symbols, _words in (line.split(":") for line in _UNITS.strip().splitlines()):
    _SYMBOLS |= dict.fromkeys(_symbols.split(), _words.split()[0])
    _WORDS |= {form: _words.split()[0] for word in _words.split() for form in (word, f"{word}s")}

_COMMAND = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\[,;:! ]|~|\\(?:quad|qquad)\b")
_DEGREE = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
# The scale of a temperature, behind its degrees.
_SCALE = re.compile(r"\bdegrees?\s+(?:(C|[Cc]elsius)|F|[Ff]ahrenheit)\b")
# Where a number, a fraction, a root or a multiple of pi has ended and a word begins.
_BEGIN = re.compile(r"(?<=[\d)}.i])\s*(?=[A-Za-z])")
# Words behind a unit, such as "a day".
_WORDS_BEHIND = re.compile(r"[\s.,]*(?:(?:a|(?!(?:or|and)\b)[A-Za-z]{2,})\b[\s.,]*)*")
# A plus or minus that is no sign: `3 + 2m` is no number of meters.
_SUM = re.compile(r"(?<=[\w)}])\s*[+-]")
_UNIT = re.compile(
    r"\s*(?P<power>(?:square|sq\.?|cubic|cu\.?)\s+)?(?P<name>[A-Za-z]+)\s*(?:\^\s*\{?\s*(?P<exponent>-?\d)\s*\}?)?",
    re.IGNORECASE,
)
_PER = re.compile(r"\s*(?:/|\bper\b)", re.IGNORECASE)
_RATES = {"mph": ("mile", "hour"), "kph": ("kilometer", "hour"), "kmh": ("kilometer", "hour")}
# Degrees without a scale are degrees, too.
_RATES |= {scale: ("degree", scale) for scale in ("celsius", "fahrenheit")}


def split(text: str) -> tuple[str, tuple[str, ...]]:
    r"""Returns the number of an answer and its unit; the answer as it is and `()` where it has none that is known here.

    The unit is a tuple: its name, with an exponent where that is not 1, and what it is divided by. So
    `12\text{ cm}^2` is ("12", ("centimeter^2",)) and `5 miles per hour`, as `5 mph`, ("5", ("mile", "hour")). Words
    behind it do not count ("18 dollars a day"); more numbers ("5 ft 3 in") make it no single unit.
    """
    plain = _DEGREE.sub(" degrees ", _SPACE.sub(" ", _COMMAND.sub(r" \1 ", text)))
    plain = plain.replace("\u00b2", "^2").replace("\u00b3", "^3")
    plain = _SCALE.sub(lambda match: "celsius" if match[1] else "fahrenheit", plain)
    for begin in _BEGIN.finditer(plain):
        if re.search(r"\\[A-Za-z]*$", plain[: begin.start()]) and not plain[: begin.start()].endswith("\\pi"):
            continue  # within the name of a command
        value = plain[: begin.start()].strip()
        found: list[str] = []
        rest = plain[begin.start() :]
        while match := _UNIT.match(rest):
            names = _names(match)
            if not names:
                break
            found += names
            rest = rest[match.end() :]
            if not (per := _PER.match(rest)):
                break
            rest = rest[per.end() :]
        preposition = re.match(r"\s*in\b", plain[begin.start() :]) and rest.strip(" .")  # "5 in all"
        if not found or preposition or _SUM.search(value) or not _WORDS_BEHIND.fullmatch(rest):
            break
        return value, tuple(found)
    return text, ()


def _names(match: re.Match[str]) -> list[str]:
    """What a matched word stands for; nothing where it is no unit."""
    name = match["name"]
    known = _SYMBOLS.get(name) or _WORDS.get(name.lower())
    if known is None:
        return list(_RATES.get(name.lower(), ()))
    power = (match["power"] or "").strip().lower()[:2]
    exponent = {"sq": "2", "cu": "3"}.get(power, match["exponent"] or "1")
    return [known if exponent == "1" else f"{known}^{exponent}"]


def differ(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two answers have units, and other ones; a unit without what it is divided by is the same."""
    shared = min(len(one), len(other))
    return one[:shared] != other[:shared]
