"""Agreement of the grader, and of bare math-verify, with labelled pairs of answers.

    python -m benchmarks.grading tests/grading/pairs.jsonl PAIRS.jsonl ...

A line of PAIRS.jsonl has `text` (of a model), `right` (the reference) and `equal` (the label), as
`tests/grading/pairs.jsonl`. Math-Verify's own pairs are in its source distribution (`pip download --no-binary :all:
--no-deps math-verify`): a folder tests/ stands for the cases of its tests that have `gold`, `pred` and `expected`.

Of the bare library these are the defaults: `verify(parse(right), parse(text))`, with dollars around a bare formula.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import pathlib
import sys
import types
from collections.abc import Callable, Iterator

from benchmarks import record
from s1jax.grading import compare, extract

Pair = tuple[str, str, bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found = {}
    for path in options.pairs:
        given = list(suite(path) if path.is_dir() else rows(path))
        found[path.name if path.suffix else "math-verify's own tests"] = {
            "pairs": len(given),
            "unequal": sum(not equal for *_, equal in given),
            "s1jax": score(given, ours),
            "math-verify": score(given, bare),
        }
        print(json.dumps(found, indent=1))
    record.write("grading", {"grader": compare.grader(), "sets": found})


def rows(path: pathlib.Path) -> Iterator[Pair]:
    """Yields the pairs of a JSONL file; a reference is a bare formula."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield f"${row['right']}$", row["text"], row["equal"]


def suite(folder: pathlib.Path) -> Iterator[Pair]:
    """Yields the cases of Math-Verify's test suite that are labelled under its default settings."""
    sys.path.insert(0, str(folder.parent))  # its files import each other from a package `tests`
    package = types.ModuleType("tests")
    package.__path__ = [str(folder)]
    sys.modules["tests"] = package
    for file in sorted(folder.glob("test_*.py")):
        for test in vars(importlib.import_module(f"tests.{file.stem}")).values():
            for mark in getattr(test, "pytestmark", []):
                names = mark.args[0] if mark.name == "parametrize" else ""
                names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
                if {"gold", "pred", "expected"} <= set(names) and "strict" not in names:
                    for case in mark.args[1]:
                        values = dict(zip(names, case, strict=True))
                        yield values["gold"], values["pred"], bool(values["expected"])


def score(pairs: list[Pair], grade: Callable[[str, str], bool | None]) -> dict[str, int]:
    """Returns how many verdicts agree with the labels, and how many unequal pairs are accepted."""
    verdicts = [(grade(right, text), equal) for right, text, equal in pairs]
    return {
        "agree": sum(verdict is equal for verdict, equal in verdicts),
        "wrongly accepted": sum(verdict is True and not equal for verdict, equal in verdicts),
        "undecided": sum(verdict is None for verdict, _ in verdicts),
    }


def ours(right: str, text: str) -> bool | None:
    """Returns the verdict of `s1jax.grading`."""
    return compare.equal(extract.extract(text), extract.extract(right))


def bare(right: str, text: str) -> bool | None:
    """Returns the verdict of math-verify with its defaults."""
    import math_verify

    return bool(math_verify.verify(math_verify.parse(right), math_verify.parse(text)))


if __name__ == "__main__":
    main()
