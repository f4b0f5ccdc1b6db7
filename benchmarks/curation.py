"""Every rule of curation that needs no model, over a pool as large as s1's, in two processes of plain Python.

    python -m benchmarks.curation --folder=runs/curation [--rows=59029] [--trace_characters=14000] [--workers=2]
    python -m benchmarks.curation --ngrams

The first writes a made-up pool with planted defects into the folder once (0.9 GB as JSONL with s1's average of 3,600
tokens a trace), then applies every rule to every row, so that a row that one rule drops is not spared the others, and
checks that what was planted is what is dropped. The second looks up 10 million n-grams of clean text in an index of a
million: a row that is dropped there is a hash that lied.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import pathlib
import random
import resource
import time
import zlib
from collections.abc import Iterator, Sequence

from benchmarks import curation_leaks, record
from s1jax.curation.decontamination import OURS, Decontaminate, Evaluated
from s1jax.curation.features import Features
from s1jax.curation.given_answer import GivenAnswer
from s1jax.curation.near_duplicates import NearDuplicates, Text
from s1jax.curation.ngrams import Index, ngrams
from s1jax.curation.quality import Quality
from s1jax.curation.repetition import Repetition
from s1jax.curation.row import Row, Rule
from s1jax.curation.strings import Strings
from s1jax.data.identity import question_id

EVALUATED = 7_700  # as many as MATH's test, GSM8K's test, LiveCodeBench and GPQA have together
FEATURES = ("domain", "pass_rate", "finish_reason")
PLANTED = ("features", "strings", "quality", "repetition", "given_answer", "decontamination", "near_duplicates")
EACH = 1 / 200  # of the pool, of every planted defect
NGRAMS, INDEXED, WORDS = 10_000_000, 1_000_000, 8

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u")]
_STORY = (
    "{name} has {a} {things} and buys {b} more at the {place}.",
    "Every {b} minutes {name} carries {a} {things} to the {place}, but one in {c} is broken on the way.",
    "The {place} sells {things} for ${a} each, and {name} pays with {b} notes of {c} dollars.",
    "After {a} days only {b}\\% of the {things} are left.",
    "Half of the {c} {things} of {name} are as heavy as {a} {things} of {other}.",
    "{other} gives {b} of the {things} to {name} and keeps {a} for the {place}.",
    "A box of {a} by {b} by {c} inches holds all {things} of the {place}.",
    "In the {place} there are {a} shelves with {b} {things} each, {c} of them red.",
    "Let $f(x) = {a}x^2 - {b}x + {c}$ be the price of $x$ {things} at the {place}.",
    "The number $n$ of {things} satisfies $n \\equiv {a} \\pmod{{{b}}}$ and $n < {c}00$.",
    "Suppose that $\\frac{{{a}}}{{{b}}}$ of the {things} cost twice as much as the others, which cost \\${c}.",
    "A triangle $ABC$ in the {place} has sides of {a}, {b} and {c} {things}.",
)  # fmt: skip
_ASKED = (
    "How many {things} does {name} have in the end?",
    "How much does {other} pay for {a} {things}?",
    "What is the smallest number of {things} that the {place} needs?",
    "After how many days does the {place} have {c} {things}?",
    "Find the remainder when the number of {things} is divided by {b}.",
    "What is the area of the floor that {a} {things} cover, in square inches?",
)
_THOUGHTS = (
    "So {name} has ${a} + {b} = {sum}$ {things} at this point.",
    "Wait, let me check whether {b} of the {things} were counted twice.",
    "Since ${a} \\cdot {b} = {product}$, the {place} needs {product} {things}.",
    "If $x = {a}$, then $f(x) = {b}x + {c}$ gives {things} worth ${value}$ dollars.",
    "Alternatively, look at the {things} that {other} keeps, of which there are {a} in {b} rows.",
    "Hmm, dividing {product} by {b} gives {a}, so this agrees with what the {place} says.",
    "Next, the share of broken {things} is $\\frac{{{a}}}{{{sum}}}$, which is less than a half.",
    "But {name} cannot have more than {c} {things}, so case {a} is out.",
    "That means we subtract {b} from {sum} and get {a} again.",
)


def word(draw: random.Random, most: int) -> str:
    """One of so many made-up words, the first of them more often (Zipf's law)."""
    rank = int(most ** draw.random())
    return _SYLLABLES[rank % 70] + _SYLLABLES[rank // 70 % 70] + (_SYLLABLES[rank // 4900] if rank >= 4900 else "")


def sentence(draw: random.Random, templates: Sequence[str]) -> str:
    """Fills one of some templates."""
    a, b, c = draw.randint(2, 99), draw.randint(2, 99), draw.randint(2, 99)
    numbers = {"sum": a + b, "product": a * b, "value": a * b + c, "a": a, "b": b, "c": c}
    name, other = word(draw, 2000).capitalize(), word(draw, 2000).capitalize()
    things, place = f"{word(draw, 3000)} {word(draw, 9000)}s", word(draw, 3000)
    return draw.choice(templates).format(things=things, place=place, name=name, other=other, **numbers)


def question(draw: random.Random) -> str:
    """About 60 words: some sentences of a story, one question."""
    return " ".join([*(sentence(draw, _STORY) for _ in range(draw.randint(3, 5))), sentence(draw, _ASKED)])


def planted(kind: str, row: dict[str, object], draw: random.Random, evaluated: Sequence[str], before: str) -> None:
    """Gives a row one defect."""
    text = str(row["question"])
    if kind == "features":
        row[draw.choice(FEATURES)] = None
    elif kind == "strings":
        row["question"] = text + draw.choice(
            [" [asy] draw((0,0)); [/asy]", "\n![Image](1.png)", " p2. The same for 5."]
        )
    elif kind == "quality":
        row["finish_reason"] = "length"
    elif kind == "repetition":
        trace = str(row["thinking_trajectories"])
        row["thinking_trajectories"] = trace[: len(trace) // 2] + "But wait, is that right? " * (20 + len(trace) // 50)
    elif kind == "given_answer":
        row["question"] = f"{text} (Answer: {row['attempt']})"
    elif kind == "decontamination":
        disguise = draw.choice([d for name, d in curation_leaks.DISGUISES.items() if name != "reworded"])
        row["question"] = disguise(draw.choice(evaluated), draw, [text, before])
    elif kind == "near_duplicates":
        words = before.split(" ")
        row["question"] = " ".join([*words[:-3], "indeed", *words[-3:]])


def write(folder: pathlib.Path, rows: int, characters: int, shards: int) -> None:
    """Writes eval.jsonl and the shards of the pool; each row has a column `planted`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    evaluated = [question(draw) for _ in range(EVALUATED)]
    (folder / "eval.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in evaluated))
    thoughts = [sentence(draw, _THOUGHTS) for _ in range(20_000)]
    average = sum(map(len, thoughts)) / len(thoughts) + 1
    each = max(1, round(rows * EACH))
    kinds = [*(kind for kind in PLANTED for _ in range(each)), *([""] * (rows - each * len(PLANTED)))]
    draw.shuffle(kinds)
    if kinds[0] == "near_duplicates":
        kinds.reverse()
    before = ""
    for shard in range(shards):
        with (folder / f"pool_{shard}.jsonl").open("w") as lines:
            for kind in kinds[shard * rows // shards : (shard + 1) * rows // shards]:
                length = min(draw.expovariate(1 / characters), 8 * characters) + 200
                row: dict[str, object] = {
                    "question": question(draw),
                    "thinking_trajectories": " ".join(draw.choices(thoughts, k=max(1, round(length / average)))),
                    "attempt": str(draw.randint(100, 9999)),
                    "domain": draw.choice("ABCDEFGH"),
                    "pass_rate": draw.random(),
                    "finish_reason": "stop",
                    "planted": kind,
                }
                planted(kind, row, draw, evaluated, before)
                if not kind:
                    before = str(row["question"])
                lines.write(json.dumps(row) + "\n")


def read(file: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a shard."""
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            columns = json.loads(line)
            trace, text = columns.pop("thinking_trajectories"), columns["question"]
            yield Row(question_id(text), text, trace, columns["attempt"], f"{file}:{number}", columns)


def rules(folder: pathlib.Path) -> list[Rule]:
    """All rules of one row."""
    with (folder / "eval.jsonl").open() as lines:
        against = [Evaluated("eval", str(i), json.loads(line)["question"]) for i, line in enumerate(lines)]
    decontaminate = Decontaminate(OURS, against)
    return [Features(FEATURES), Strings(), Quality(), Repetition(), GivenAnswer(), decontaminate]


def shard(file: pathlib.Path) -> tuple[list[tuple[str, list[str]]], list[Text], dict[str, float]]:
    """Applies all rules of one row to all rows of a shard.

    Returns:
      (planted defect, names of the rules that drop it) of each row; what near-duplicates are looked for with; seconds
      of the processor by rule.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    near = NearDuplicates()
    found, texts = [], []
    for row in read(file):
        names = []
        for rule in _rules:
            start = time.process_time()
            if rule(row) is not None:
                names.append(rule.name)
            seconds[rule.name] += time.process_time() - start
        start = time.process_time()
        texts.append(near.text(row))
        seconds[near.name] += time.process_time() - start
        found.append((str(row.columns["planted"]), names))
    return found, texts, dict(seconds)


_rules: list[Rule] = []  # of the process and of those forked from it


def all_rules(folder: pathlib.Path, shards: int, workers: int) -> dict[str, object]:
    """Times all rules over all shards, and compares what they drop with what was planted."""
    start = time.perf_counter()
    _rules[:] = rules(folder)
    index = time.perf_counter() - start
    files = [folder / f"pool_{number}.jsonl" for number in range(shards)]
    if workers > 1:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            parts = pool.map(shard, files, chunksize=1)
    else:
        parts = [shard(file) for file in files]
    by_row = time.perf_counter() - start
    found = [one for part in parts for one in part[0]]
    drops = NearDuplicates().of([text for part in parts for text in part[1]])
    wall = time.perf_counter() - start
    seconds = {name: sum(part[2][name] for part in parts) for name in parts[0][2]}
    caught: dict[str, float] = {}
    for kind in PLANTED:
        names = [names for planted, names in found if planted == kind]
        caught[kind] = sum(kind in one for one in names) / len(names)
    clean = [names for planted, names in found if not planted]
    memory = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    caught["near_duplicates"] = len(drops) / sum(planted == "near_duplicates" for planted, _ in found)
    return {
        "rows": len(found),
        "bytes": sum(file.stat().st_size for file in files),
        "wall_seconds": wall,
        "wall_seconds_of": {"index": index, "rows": by_row - index, "near_duplicates": wall - by_row},
        "cpu_seconds_by_rule": {name: round(value, 2) for name, value in seconds.items()},
        "megabytes": {"this process": memory[0], "largest worker": memory[1]},
        "planted_and_dropped": caught,
        "clean_rows_dropped": dict(collections.Counter(name for names in clean for name in names)),
    }


def clean_ngrams(total: int = NGRAMS, indexed: int = INDEXED, words: int = WORDS) -> dict[str, object]:
    """Looks up n-grams of clean rows in an index of others; by 32-bit hashes as well, for comparison."""
    draw = random.Random(1)
    vocabulary = [f"w{i}" for i in range(20_000)]
    per_text = 500
    texts = [draw.choices(vocabulary, k=per_text + words - 1) for _ in range(indexed // per_text)]
    index = Index(texts, words)
    weak = {zlib.crc32(" ".join(gram).encode()) for text in texts for gram in ngrams(text, words)}
    hits = weak_hits = rows = 0
    for _ in range(total // 100):  # rows of 100 n-grams
        grams = list(ngrams(draw.choices(vocabulary, k=100 + words - 1), words))
        hits += any(index.holders(gram) for gram in grams)
        weak_hits += any(zlib.crc32(" ".join(gram).encode()) in weak for gram in grams)
        rows += 1
    return {"ngrams": total, "indexed": len(index), "rows": rows, "clean_rows_dropped": hits, "with_32_bits": weak_hits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/curation"))
    parser.add_argument("--rows", type=int, default=59_029)
    parser.add_argument("--trace_characters", type=int, default=14_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ngrams", action="store_true")
    args = parser.parse_args()
    if args.ngrams:
        record.write("curation_ngrams", clean_ngrams())
        return
    shards = 8
    written = args.folder / "written.json"
    made_of = [args.rows, args.trace_characters, shards]
    if not written.exists() or json.loads(written.read_text()) != made_of:
        write(args.folder, args.rows, args.trace_characters, shards)
        written.write_text(json.dumps(made_of))
    record.write("curation", {**all_rules(args.folder, shards, args.workers), "workers": args.workers}, speed=True)


if __name__ == "__main__":
    main()
