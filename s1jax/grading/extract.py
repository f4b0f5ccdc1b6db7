r"""Finds the final answer in a model's text, in time linear in its length.

The first of these that exists: the content of the last `<answer>`; the text after the last marker, which is "Final
Answer:", "Answer:" (`_WORDS` has other languages) or GSM8K's `####`, where a box is preferred to the marker's line; the
last `\boxed{...}`, joined with its neighbours if an answer has several; the text after "the answer is"; the last line.
"""

import re
from collections.abc import Iterator

# Numbers of characters: how much of the end of a text is searched, and how much of an answer is compared.
SEARCHED, LONGEST = 50_000, 500

_WORDS = (
    r"answer|答案|答え|回答|解答|정답|답|ответ|r[ée]ponse(?:\s{1,3}finale)?|antwort|endergebnis|respuesta(?:\s{1,3}final)?"
    r"|resposta(?:\s{1,3}final)?|risposta(?:\s{1,3}finale)?"
)
# "Answer: is" is prose. A line that begins with #### is a heading where letters follow, unless it is the last line.
_MARK = re.compile(
    rf"(?<![a-zA-Z])(?:final\s{{1,3}})?(?:{_WORDS})[*\s]{{0,4}}[:：](?!\s{{0,3}}is\b)"
    r"|^[ \t]{0,8}####(?!#)(?=[^\nA-Za-z]*$|[^\n]*\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_SAID = re.compile(
    rf"(?:(?<![a-zA-Z])(?:{_WORDS})(?:\s{{1,3}}(?:is|est|ist|es|è|é|lautet)\b|\s{{0,3}}(?:是|为|為|は|는|은))"
    r"|\bequals(?=\s))[\s:：]{0,4}(?!not\b)",
    re.IGNORECASE,
)
_INNER = re.compile(r"\s*\\(?:boxed|fbox)\s{0,8}(?=\{)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}(?:(?=\{)|(?P<bare>[^\s{$]{1,40}))")
_FENCE = re.compile(
    r"\\[\[\]()]|\$+|`{3,}\w*|[-=_*]+|\$*\\(?:boxed|fbox)\s{0,8}\{\s{0,8}\}\$*"
)  # a border, an empty box
_MATH = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_LIST = re.compile(r"\s*(?:,|;|,?\s*\band\b|,?\s*\bor\b)\s*")


def extract(text: str) -> str:
    """Returns the answer that `text` gives, at most `LONGEST` characters; empty if it gives none."""
    text = text[-SEARCHED:].split("<|im_")[0].rstrip()
    if (end := text.rfind("</answer>")) >= 0:
        text = text[:end]
    if (begin := text.rfind("<answer>")) >= 0:
        text = text[begin + len("<answer>") :]
        return _tidy(_joined(text, _boxes(text)) or " ".join(text.split()))
    boxes = _boxes(text)
    for mark in reversed(list(_MARK.finditer(text))[-8:]):
        if answer := _joined(text, [box for box in boxes if box[0] >= mark.end()]):
            return _tidy(answer)
        if line := next(_lines(text[mark.end() :]), ""):
            return _tidy(_in_line(line, marked=True))
    if answer := _joined(text, boxes):
        return _tidy(answer)
    said = list(_SAID.finditer(text))
    if said and (line := next(_lines(text[said[-1].end() :]), "")):
        return _tidy(_in_line(re.split(r"(?<=[\d})$])\.\s+(?=[A-Z])", line)[0], marked=True))
    return _tidy(_in_line(next(_lines(text[-4 * LONGEST :], last=True), ""), marked=False))


def marked(text: str) -> bool:
    """Whether a marker or a box shows which part of `text` is the answer."""
    return bool("<answer>" in text or _MARK.search(text) or _boxes(text))


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Returns (start, end, content) of the outermost closed boxes that are not empty."""
    opened, closed, found, after = list[int](), dict[int, int](), list[tuple[int, int, str]](), 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # `\{` is a letter of the answer
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closed[opened.pop()] = match.start()
    for match in _BOX.finditer(text):
        end = match.end() if match["bare"] else closed.get(match.end(), -1)
        if match.start() >= after and end >= 0:
            start, stop, after = match.end() + 1, end, end
            while (inner := _INNER.match(text, start, stop)) and not text[closed[inner.end()] + 1 : stop].strip():
                start, stop = inner.end() + 1, closed[inner.end()]  # a box in a box
            if content := match["bare"] or text[start:stop].strip():
                found.append((match.start(), end, content))
    return found


def _joined(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """Returns the last box, with those before it if only a comma, "and" or a few other words separate them."""
    parts = boxes[-1:]
    for box in reversed(boxes[-20:-1]):
        between = text[box[1] + 1 : parts[0][0]]
        near = len(between) < 40 and re.search(r",|;|\band\b|\bor\b|和|或|^[^\w.]*$", between) and "." not in between
        if not near or box[2] in [part[2] for part in parts] or re.search(r"\b(?:no|wait|rather)\b", between.lower()):
            break
        parts.insert(0, box)
    return ", ".join(part[2] for part in parts)


def _lines(text: str, last: bool = False) -> Iterator[str]:
    """Yields the lines that are not just the border of mathematics or code; from the end if `last`."""
    for line in text.splitlines()[:: -1 if last else 1]:
        if (line := line.strip().strip("*").strip()) and not _FENCE.fullmatch(line) and not _MARK.fullmatch(line):
            yield line


def _in_line(line: str, marked: bool) -> str:
    """Returns the formulas after "the answer is" or the last "is" of a line, or all of that text if it has none.

    In a line without a marker the last sentence and the last formula count, otherwise the first formula.
    """
    line = line[: 4 * LONGEST] if marked else line[-4 * LONGEST :]
    line = re.sub(r"\.?\s{0,9}I hope it is correct.*", "", line, flags=re.IGNORECASE)
    if not marked:
        line = re.split(r"(?<=[.!?])\$*\s{1,3}(?=[A-Z])", line)[-1]
    said = _SAID.search(line)
    rest = line[said.end() :] if said else re.split(r"(?<=\w|\$)\s(?:is|are)(?=\s[-$\\\d])", line)[-1]
    groups: list[tuple[int, str]] = []
    for match in _MATH.finditer(rest):
        formula = next(filter(None, match.groups()))
        if groups and _LIST.fullmatch(rest[groups[-1][0] : match.start()]):
            groups[-1] = (match.end(), f"{groups[-1][1]}, {formula}")
        else:
            groups.append((match.end(), formula))
    prose = re.search(r"[A-Za-z]{2}", _MATH.sub("", line))
    return groups[0 if marked else -1][1] if groups and (prose or _MATH.fullmatch(rest)) else rest


def _tidy(answer: str) -> str:
    return answer[-LONGEST:].strip().strip("*`").strip()
