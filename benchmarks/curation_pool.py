"""A made-up pool of the size of s1's with known defects, and what each rule of `--preset=s1_paper` must drop of it.

    python -m benchmarks.curation_pool --out=runs/pool [--rows=59029] [--seed=0] [--trace_characters=200]
        [--shards=1]

Writes pool.jsonl, eval.jsonl (evaluation questions) and truth.json (rule -> ids of the rows it must drop; `first`: ids
that Algorithm 1 chooses before any draw). Every row has at most one defect, in the proportions of the paper's counts:
59,029 rows, 54,116 with all features, 51,581 without odd strings, 24,496 that no student solves. Questions are random
words, so no two have eight in common by chance.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import random
from collections.abc import Iterator

from s1jax.data.identity import question_id

WHOLE = 59_029  # rows of s1's pool; the counts below are of so many
DEFECTS = {
    "identity": 50,  # copies of clean rows
    "features": 4_863,
    "strings": 2_535,
    "difficulty": 27_085,
    "duplicates": 60,  # second answers to the questions of clean rows
    "decontamination": 140,
}
FIRST = 384
DOMAINS = 50
MEAN_TOKENS = 3_600  # of a trace, as in the paper
_STRINGS = ("[asy] draw((0,0)); [/asy]", "![Image](figure)", "p12. and", "the **3)** part")
_SOURCES = ("AI-MO/NuminaMath-CoT/aops_forum", "qfq/openaimath/Algebra", "TIGER-Lab/TheoremQA", "math-ai/olympiads")
_EVALUATED = 700


@dataclasses.dataclass
class Truth:
    """What a curation must do with a pool.

    Attributes:
      dropped: rule -> ids of the rows it must drop, with repetitions.
      first: ids of the rows that Algorithm 1 chooses before any draw.
      clean: number of rows that selection chooses from.
      tokens: of the traces of all rows, and of the clean ones.
    """

    dropped: dict[str, list[str]]
    first: list[str]
    clean: int
    tokens: dict[str, int]


def counts(rows: int) -> dict[str, int]:
    """Number of rows of each kind in a pool of so many, at least two of each defect."""
    found = {kind: max(2, round(count * rows / WHOLE)) for kind, count in DEFECTS.items()}
    return found | {"clean": rows - sum(found.values())}


def evaluation(seed: int) -> list[str]:
    """The evaluation questions."""
    rng = random.Random(f"evaluation {seed}")
    return [_question(rng, f"evaluated{i}") for i in range(_EVALUATED)]


def make(rows: int, seed: int, truth: Truth, trace_characters: int = 200) -> Iterator[dict[str, object]]:
    """Yields the rows of a pool and fills in `truth`; copies and second answers come last."""
    number = counts(rows)
    repeats = ("identity", "duplicates")
    kinds = [kind for kind, count in number.items() if kind not in repeats for _ in range(count)]
    rng = random.Random(f"order {seed}")
    rng.shuffle(kinds)
    clean = [i for i, kind in enumerate(kinds) if kind == "clean"]
    first = set(rng.sample(clean, max(3, round(FIRST * rows / WHOLE))))
    evaluated = evaluation(seed)
    truth.dropped.update({kind: [] for kind in DEFECTS})
    truth.clean = number["clean"]
    for i, kind in enumerate(kinds):
        row, tokens = _row(i, kind, seed, i in first, trace_characters, evaluated)
        row_id = question_id(str(row["question"]))
        truth.tokens["all"] += tokens
        if kind == "clean":
            truth.tokens["clean"] += tokens
        else:
            truth.dropped[kind].append(row_id)
        if i in first:
            truth.first.append(row_id)
        yield row
    again = [kind for kind in repeats for _ in range(number[kind])]
    for kind, i in zip(again, rng.sample(clean, len(again)), strict=True):
        row, tokens = _row(i, "clean", seed, i in first, trace_characters, evaluated)
        if kind == "duplicates":
            row["attempt"] = "Another answer."
        truth.tokens["all"] += tokens
        truth.dropped[kind].append(question_id(str(row["question"])))
        yield row


def _row(
    i: int, kind: str, seed: int, first: bool, trace_characters: int, evaluated: list[str]
) -> tuple[dict[str, object], int]:
    """Returns a row and the tokens of its trace."""
    rng = random.Random(f"row {seed} {i}")
    question = _question(rng, f"row{i}")
    if kind == "strings":
        question += f" {rng.choice(_STRINGS)} {i}"
    if kind == "decontamination":
        question = f"{question} {rng.choice(evaluated)}"
    tokens = min(32_000, max(50, round(rng.lognormvariate(0, 0.7) * MEAN_TOKENS / 1.278)))
    source, correct = rng.choice(_SOURCES), rng.random() < 0.5
    if first:
        source, correct = rng.choice(["qq8933/AIME_1983_2024", "Idavidrein/gpqa", "qfq/openaimath/Geometry"]), True
        tokens = max(tokens, 5_601)
    elif "openaimath" in source:
        tokens = min(tokens, 5_600)
    row: dict[str, object] = {
        "question": question,
        "thinking_trajectories": [_trace(rng, trace_characters)],
        "attempt": f"Answer: {rng.randrange(1000)}",
        "solution": str(rng.randrange(1000)),
        "source_type": source,
        "domain": f"domain {min(rng.randrange(DOMAINS), rng.randrange(DOMAINS)):02d}",
        "pass_rate": rng.choice([0.5, 1.0]) if kind == "difficulty" else 0.0,
        "pass_tries": 2,
        "correct": correct,
        "trace_tokens": tokens,
    }
    if kind == "features":
        row[rng.choice(["pass_rate", "correct", "domain", "trace_tokens"])] = None
    return row, tokens


def _question(rng: random.Random, name: str) -> str:
    words = (f"{rng.choice(_ONSETS)}{rng.choice(_VOWELS)}{rng.choice(_ENDS)}" for _ in range(rng.randrange(40, 80)))
    return f"In {name}, {' '.join(words)} {rng.randrange(1000)} what?"


def _trace(rng: random.Random, characters: int) -> str:
    sentences = []
    while characters > 0:
        number = rng.getrandbits(64)
        sentences.append(f"Then {number} makes {number >> 7}, which I check against {number % 9973}. ")
        characters -= len(sentences[-1])
    return "".join(sentences)


_ONSETS = (
    "b",
    "br",
    "c",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "pl",
    "r",
    "s",
    "st",
    "t",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_ENDS = ("b", "ck", "d", "ft", "g", "lt", "m", "n", "nd", "p", "r", "rt", "s", "st", "t", "x")


def write(folder: pathlib.Path, rows: int, seed: int, trace_characters: int = 200, shards: int = 1) -> Truth:
    """Writes pool.jsonl, or pool-0.jsonl and so on, and eval.jsonl; returns the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = Truth({}, [], 0, {"all": 0, "clean": 0})
    names = ["pool.jsonl"] if shards == 1 else [f"pool-{shard}.jsonl" for shard in range(shards)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("w")) for name in names]
        for number, row in enumerate(make(rows, seed, truth, trace_characters)):
            files[number % shards].write(json.dumps(row) + "\n")
    lines = (json.dumps({"question": question}) + "\n" for question in evaluation(seed))
    (folder / "eval.jsonl").write_text("".join(lines))
    (folder / "truth.json").write_text(json.dumps(dataclasses.asdict(truth)) + "\n")
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=WHOLE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace_characters", type=int, default=200)
    parser.add_argument("--shards", type=int, default=1)
    args = parser.parse_args()
    write(args.out, args.rows, args.seed, args.trace_characters, args.shards)
    print(f"wrote {args.rows:,} rows to {args.out}")


if __name__ == "__main__":
    main()
