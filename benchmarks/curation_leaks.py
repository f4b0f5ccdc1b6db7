"""Which planted leaks the rules of decontamination find in GSM8K, and what they drop of clean rows.

    python -m benchmarks.curation_leaks --train=gsm8k_train.jsonl --test=gsm8k_test.jsonl

Every test question is planted in five disguises; each rule then reads them, and all of the train questions. What `ours`
drops of the latter is listed beside the test question; `READ` says what a reader found each of these pairs to be.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import re
from collections.abc import Callable, Mapping, Sequence

from benchmarks import record
from s1jax.curation.decontamination import LIGHT_R1, OURS, S1, Decontaminate, Decontamination, Evaluated
from s1jax.curation.row import Row
from s1jax.io import readers

SET = "gsm8k_test"
RULES: Mapping[str, tuple[Decontamination, ...]] = {
    "s1": (S1,),
    "letters, 8": (Decontamination(words="letters", match="any", n=8),),
    "letters, 13": (Decontamination(words="letters", match="any", n=13),),
    "number_blind, 13": (Decontamination(words="number_blind", match="any", n=13),),
    "Light-R1": LIGHT_R1,
    "ours": (OURS,),
}
# Train rows that `ours` drops -> what a reader says of the pair. `variant`: the same problem with other numbers, names
# or things (1781 and 2600 ask something else about the same prices); `phrase`: a clean row.
READ: Mapping[int, str] = dict.fromkeys((20, 1314, 1781, 2600, 3726, 5162, 7285), "variant")

_WORDS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy",
    "eighty", "ninety",
)  # fmt: skip
_SMALL, _TENS = _WORDS[:18], _WORDS[18:]
_NUMBER = re.compile(rf"\d+(?:[.,/]\d+)*|\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)


def exact(question: str, draw: random.Random, pool: Sequence[str]) -> str:
    """The question itself."""
    return question


def punctuation(question: str, draw: random.Random, pool: Sequence[str]) -> str:
    """Other punctuation, quotes, capitals and white space."""

    def changed(sign: re.Match[str]) -> str:
        return draw.choice(["", sign[0], "; ", " ", " - ", "\n", "’", '"'])

    text = re.sub(r"(?<!\d)[.,](?!\d)|[;:?!'’\"-]", changed, question)
    text = re.sub(" ", lambda _: draw.choice([" ", " ", "  ", "\n", "\t", "\u00a0"]), text)
    return draw.choice([text, text.upper(), text.lower(), f"**{text}**"])


def numbers(question: str, draw: random.Random, pool: Sequence[str]) -> str:
    """Every number is another one, in another form at times; numbers in words stay words."""

    def other(number: re.Match[str]) -> str:
        if number[0][0].isdigit():
            small, large = draw.randint(2, 99), draw.randint(1000, 99999)
            return draw.choice([str(small), str(small), f"{large:,}", str(large), f"{small}.5", f"1/{small}"])
        return (
            draw.choice(_WORDS[:18])
            if draw.random() < 0.7
            else f"{draw.choice(_WORDS[18:26])}-{draw.choice(_WORDS[:8])}"
        )

    return _NUMBER.sub(other, question)


def embedded(question: str, draw: random.Random, pool: Sequence[str]) -> str:
    """Between three to six other problems, or below an instruction."""
    before, after = ([draw.choice(pool) for _ in range(draw.randint(1, 3))] for _ in range(2))
    task = draw.choice(["", "Solve the following problem and explain every step. ", "Question: "])
    return "\n".join([*before, task + question, *after])


def reworded(question: str, draw: random.Random, pool: Sequence[str]) -> str:
    """One word in ten is another one, names and units among them, and every number: no rule here is made for it."""
    words = numbers(question, draw, pool).split()
    return " ".join(draw.choice(draw.choice(pool).split()) if draw.random() < 0.1 else word for word in words)


def latex(question: str, draw: random.Random, pool: Sequence[str]) -> str:
    """Numbers and units in mathematics, with LaTeX's spaces."""
    space = ["\\,", "\\;", "\\ ", "~", "\\!", "\\quad ", " "]

    def number(found: re.Match[str]) -> str:
        text = found[0].replace(",", draw.choice(["{,}", ",", "\\,", "\\!"]))
        if "/" in text:
            above, below = text.split("/", 1)
            text = f"\\{draw.choice(['', 'd', 't'])}frac{{{above}}}{{{below}}}"
        left, right = draw.choice([("$", "$"), ("\\(", "\\)"), ("$\\left.", "\\right.$")])
        return f"{left}{draw.choice(['', *space])}{text}{draw.choice(['', *space])}{right}"

    text = re.sub(r"\d+(?:[.,/]\d+)*", number, question.replace("$", "\\$").replace("%", "\\%"))
    text = re.sub(r"(?<=[a-z]) (?=[a-z])", lambda _: draw.choice(["~", "\\ ", *[" "] * 8]), text)
    return re.sub(
        r"\b(miles|hours|minutes|dollars|pounds|feet|inches|liters)\b",
        lambda unit: draw.choice([f"\\text{{{unit[0]}}}", f"$\\mathrm{{~{unit[0]}}}$", unit[0]]),
        text,
    )


DISGUISES: Mapping[str, Callable[[str, random.Random, Sequence[str]], str]] = {
    "exact": exact,
    "punctuation": punctuation,
    "numbers": numbers,
    "embedded": embedded,
    "latex": latex,
    "reworded": reworded,
}


def planted(questions: Sequence[str], pool: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """Every question in every disguise."""
    return {
        name: [disguise(text, random.Random(f"{seed} {name} {i}"), pool) for i, text in enumerate(questions)]
        for name, disguise in DISGUISES.items()
    }


def row(question: str) -> Row:
    """A row of a pool."""
    return Row("", question, "", "", "")


def found(rules: Sequence[Decontaminate], text: str) -> str | None:
    """Evidence of the first rule that drops a text."""
    return next((drop.evidence for drop in (rule(row(text)) for rule in rules) if drop), None)


def recall(rules: Sequence[Decontaminate], texts: Sequence[str]) -> dict[str, float]:
    """Share of planted questions that are dropped, and of those whose evidence names the question that was planted."""
    evidence = [found(rules, text) for text in texts]
    named = [one is not None and re.match(rf"{SET}, {i}\b", one) is not None for i, one in enumerate(evidence)]
    return {"dropped": sum(one is not None for one in evidence) / len(texts), "named": sum(named) / len(texts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    args = parser.parse_args()
    train, test = ([one["question"] for _, one in readers.read(file)] for file in (args.train, args.test))
    against = [Evaluated(SET, str(number), text) for number, text in enumerate(test)]
    leaks = planted(test, train)
    results: dict[str, object] = {}
    hits: list[dict[str, object]] = []
    for name, settings in RULES.items():
        rules = [Decontaminate(one, against) for one in settings]
        evidence = {i: one for i, one in enumerate(found(rules, text) for text in train) if one is not None}
        results[name] = {
            "leaks": {kind: recall(rules, texts) for kind, texts in leaks.items()},
            "train_rows_dropped": len(evidence),
        }
        print(name, results[name], flush=True)
        if name == "ours":
            hits = [{"train": i, "evidence": one, "read": READ.get(i, "unread")} for i, one in evidence.items()]
    wrong = sum(hit["read"] != "variant" for hit in hits)
    record.write(
        "curation_leaks",
        {"planted": len(test), "clean_rows": len(train), "rules": results, "hits": hits, "false_positives": wrong},
    )


if __name__ == "__main__":
    main()
