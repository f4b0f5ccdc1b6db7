"""Loads tasks by name: Countdown, published benchmarks, files of questions with answers.

A published benchmark is graded as the field grades it: gsm8k by the text of the last number, as `flexible-extract` of
lm_eval's task; aime by the whole number; gpqa by the letter; math500 and files of rows by math-verify
(`s1jax.grading`).

Questions are asked without further instructions. Choices follow as "A) ..." lines, as in the paper's evaluation
(github.com/simplescaling/s1, eval/). Benchmarks are read from a local file in their own columns, `gsm8k:test.jsonl`, or
fetched from the hub by their name alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from s1jax.errors import UserError
from s1jax.grading import choices as letters_lib
from s1jax.grading import compare, extract
from s1jax.io import hub, readers
from s1jax.tasks.countdown import task as countdown
from s1jax.tasks.task import Row, Task

# Name -> dataset repository of the hub and the files to take from it.
HUB = {
    "gsm8k": ("openai/gsm8k", "main/test*.parquet"),
    "math500": ("HuggingFaceH4/MATH-500", "test.jsonl"),
    "aime24": ("HuggingFaceH4/aime_2024", "data/train*.parquet"),
    "aime25": ("opencompass/AIME2025", "*.jsonl"),
    "gpqa": ("Idavidrein/gpqa", "gpqa_diamond.csv"),
}
NAMES = (*countdown.NAMES, *HUB, "choices")


def load(name: str, num_problems: int = 0, split: str = "test") -> Task:
    """Loads a task.

    Args:
      name: one of `countdown.NAMES`; one of `HUB`, also as `NAME@REVISION`, or `NAME:FILE` for a local copy of it;
        `choices:FILE` for other multiple choice; or a FILE of questions and answers that are graded as mathematics.
        FILE is any file that `s1jax.io.readers` reads, or a folder. Its test split is taken, else validation, else
        train.
      num_problems: that many from the front; 0 takes all.
      split: held-out problems of Countdown, `dev` or `test`.

    Raises:
      UserError: names the file, row and field of whatever is wrong, or says which tasks there are.
    """
    if name in countdown.NAMES:
        return countdown.load(name, num_problems, split)
    if not name:
        raise UserError(f"--task names no task; give a file of rows, or one of {', '.join(NAMES)}.")
    kind, _, file = name.partition(":")
    kind, _, revision = kind.partition("@")
    if revision and (file or kind not in HUB):
        kind = ""  # a file with such a name
    if kind not in NAMES or kind in countdown.NAMES:
        kind, file = "", name
    if kind == "choices" and not file:
        raise UserError("task choices needs a file; give choices:FILE.jsonl.")
    found: list[dict[str, Any]] = []
    places: list[str] = []
    notes: list[str] = []
    for number, (where, record) in enumerate(_records(file, notes) if file else _from_hub(kind, revision, notes)):
        if num_problems and number == num_problems:
            break
        found.append(problem(kind, record, where, number))
        places.append(where)
    if len(found) < max(num_problems, 1):
        asked = f"--num_problems is {num_problems}, but {file or kind} holds {len(found)} rows; ask for fewer."
        raise UserError(asked if found else f"{file or kind} holds no rows; give at least one question.")
    title = f"{kind or pathlib.Path(file.removesuffix('.gz')).stem}, {len(found)} problems"
    return dataclasses.replace(graded(kind, title, found), places=places, notes=notes)


def problem(kind: str, record: Row, where: str, number: int) -> dict[str, Any]:
    """Returns the problem that a row is.

    Args:
      kind: name of a task without a file, or empty for mathematics.
      record: columns of the row.
      where: what messages call the row.
      number: decides the order of the choices of a row in GPQA's columns.

    Raises:
      UserError: the row has no question, no answer that can be graded against, or text that cannot be used.
    """
    columns = {str(key).lower(): value for key, value in record.items()}
    if kind in countdown.NAMES:
        found = countdown.problem(columns, where)
    else:
        found = _row(kind, columns, where, number)
    found |= _system(columns, where)
    for part in ("question", "reference", "system"):
        readers.check_length(str(found.get(part, "")), where, part)
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which the file of samples could not hold
        raise UserError(f"{where} is not valid Unicode ({error.reason}); repair the row.") from None
    return found


def graded(kind: str, title: str, rows: list[dict[str, Any]]) -> Task:
    """Returns problems (see `problem`) of one kind as a task, graded as the field grades that kind."""
    if kind in countdown.NAMES:
        return countdown.graded(kind, title, rows)
    if kind in ("gpqa", "choices"):
        return Task(title, rows, _letter, str.__eq__, _is_reference, f"letters, {compare.grader()}")
    if kind == "gsm8k":
        return Task(title, rows, _last_number, str.__eq__, _is_number, "numbers as lm_eval's gsm8k flexible-extract, 1")
    if kind in ("aime24", "aime25"):
        return Task(title, rows, _whole, str.__eq__, _is_reference, f"whole numbers, s1jax grading {compare.VERSION}")
    return Task(title, rows, _final, _same, _is_equal, compare.grader())


def _final(text: str, row: Row) -> str | None:
    return extract.extract(text) or None


def _same(one: str, other: str) -> bool:
    return compare.equal(one, other) is True  # undecided answers do not share a vote


def _is_equal(answer: str, row: Row) -> bool | None:
    return compare.equal(answer, row["reference"])


def _is_reference(answer: str, row: Row) -> bool:
    return answer == row["reference"]


def _letter(text: str, row: Row) -> str | None:
    return letters_lib.letter(text, row["choices"])


def _last_number(text: str, row: Row) -> str | None:
    """Returns the last number of a text as lm_eval's gsm8k: without commas, dollar signs and a last full stop."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return _plain(found[-1][0] or found[-1][1]) if found else None


def _plain(number: str) -> str:
    return re.sub(r"\.$", "", re.sub(r"[,$]", "", number.strip()))


def _is_number(answer: str, row: Row) -> bool:
    return answer == _plain(row["reference"])


def _whole(text: str, row: Row) -> str | None:
    """Returns the whole number that the final answer of a text is, or its end after the last "="."""
    return whole_number(extract.extract(text).rpartition("=")[2])


def whole_number(answer: str) -> str | None:
    r"""Returns the digits of the whole number that `025`, `25.0`, `$25$` or `25^\circ` is; None for other answers."""
    number = compare.number(compare.tidy(answer))
    return str(number) if number is not None and number.denominator == 1 else None


def _row(kind: str, record: dict[str, object], where: str, number: int) -> dict[str, object]:
    """Makes the prompt row of one record, whose column names are in lower case."""
    question = record.get("question", record.get("problem"))
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: no text `question`; every row is an object with `question` and `answer`.")
    question = question.strip()
    if kind in ("gpqa", "choices"):
        choices, right = _choices(record, where, number)
        lines = [f"{letter}) {choice}" for letter, choice in zip(letters_lib.LETTERS, choices, strict=False)]
        return {"question": "\n".join([f"{question}\n", *lines]), "choices": choices, "reference": right}
    reference = _reference(record, where)
    if kind in ("aime24", "aime25"):
        # Published answers are written 025, 25, 25.0, $25$ or 25^\circ; all AIME answers are whole numbers of 0..999.
        whole = whole_number(reference)
        if whole is None or not 0 <= int(whole) <= 999:
            raise UserError(
                f"{where}: answer {reference!r} is not a whole number of 0..999, as all of AIME are; repair it."
            )
        reference = whole
    return {"question": question, "reference": reference}


def _system(record: dict[str, object], where: str) -> dict[str, str]:
    """The system prompt of a record, as a field of its prompt row."""
    system = record.get("system") or ""
    if not isinstance(system, str):
        raise UserError(f"{where}: system is {system!r:.40}; it must be a text.")
    return {"system": system} if system else {}


def _reference(row: Row, where: str) -> str:
    r"""Returns the right answer of a row: its `answer`, or else its `solution`.

    The field may hold the bare answer, or a worked solution that ends in GSM8K's `#### x` or holds `\boxed{x}` or
    "Answer: x".
    """
    for field in ("answer", "solution"):
        value = row.get(field)
        if value is None or isinstance(value, (bool, list, dict)) or not str(value).strip():
            continue
        if isinstance(value, float) and not math.isfinite(value):  # NaN, which Python reads in JSON
            continue
        text = str(value).strip()
        answer = extract.extract(text) if extract.marked(text) else text
        if "\n" in answer:
            raise UserError(
                f"{where}: `{field}` has several lines and no final answer; end it in a line `#### ANSWER` or give "
                "the bare answer."
            )
        if len(answer) >= extract.LONGEST:
            raise UserError(
                f"{where}: the answer in `{field}` has {len(answer)} characters, and fewer than {extract.LONGEST} of a"
                " model's are looked at; give a shorter one."
            )
        return answer
    raise UserError(f"{where}: no answer to grade against; give the row a field `answer` or `solution`.")


def _choices(record: dict[str, object], where: str, number: int) -> tuple[list[str], str]:
    """Returns the choices of a record in the order in which they are shown, and the letter of the right one.

    Either GPQA's columns (`Correct Answer`, `Incorrect Answer 1` to `3`), shuffled by the number of the row, or
    `choices` with the right one in `answer` as a letter, as a place from 0, or as its text.
    """
    if "correct answer" in record:
        right = _choice(record["correct answer"])
        names = sorted(name for name in record if name.startswith("incorrect answer"))
        choices = [right, *(_choice(record[name]) for name in names)]
        random.Random(f"choices {number}").shuffle(choices)
        answer: object = right
    else:
        given, answer = record.get("choices", record.get("options")), record.get("answer")
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise UserError(
                f"{where}: no list `choices`; give it, or GPQA's columns Correct Answer and Incorrect Answer 1."
            )
        choices = [_choice(choice) for choice in given]
        answer = answer.strip() if isinstance(answer, str) else answer
    letters = letters_lib.LETTERS[: len(choices)]
    if not 2 <= len(choices) <= len(letters) or not all(choices):
        raise UserError(f"{where}: the choices are {choices!r}; give 2 to 26, none of them empty.")
    if answer in choices:
        place = choices.index(answer)
        if isinstance(answer, str) and answer in letters and letters.index(answer) != place:
            raise UserError(
                f"{where}: `answer` {answer!r} is the text of one choice and the letter of another; give its place from"
                " 0."
            )
    elif isinstance(answer, str) and len(answer) == 1 and answer.upper() in letters:
        place = letters.index(answer.upper())
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        place = answer
    else:
        raise UserError(
            f"{where}: `answer` is {answer!r}; give the letter of one of the {len(choices)} choices, its place from 0"
            " or its text."
        )
    if choices.count(choices[place]) > 1:  # two wrong ones may be alike
        raise UserError(f"{where}: the right choice {choices[place]!r} is there twice; repair the row.")
    return choices, letters[place]


def _choice(value: object) -> str:
    return "" if value is None else str(value).strip()


def _records(path: str, notes: list[str]) -> Iterator[tuple[str, Row]]:
    """Yields (name, columns) of the rows of a file, or of the test split of a folder, see `s1jax.io.readers`."""
    if not pathlib.Path(path).exists():
        kinds = f"{', '.join(NAMES)} are the names of tasks, and a file of rows is {readers.READABLE}"
        raise UserError(f"--task {path} does not exist; {kinds}.")
    yield from readers.read(path, readers.EVALUATION, notes)


def _from_hub(name: str, revision: str, notes: list[str]) -> Iterator[tuple[str, Row]]:
    """Downloads a published task, or finds it in the hub's cache, and yields its rows."""
    repository, pattern = HUB[name]
    try:
        folder, commit = hub.snapshot(repository, [pattern], kind="dataset", revision=revision)
        files = sorted(folder.glob(pattern))
    except Exception as error:  # requests, httpx, OSError and the library's own, by version
        raise UserError(
            f"task {name} cannot be downloaded from {repository} ({type(error).__name__}); download {pattern} elsewhere"
            f" and give --task={name}:FILE."
        ) from error
    if not files:
        raise UserError(f"{repository} has no {pattern} any more; give a local copy as --task={name}:FILE.")
    notes.append(
        f"{name} is {repository}{f' at revision {commit}' if commit else ''}; --task={name}@REVISION chooses one."
    )
    for file in files:
        yield from readers.read_file(file)
