"""How well vectors of questions find their subjects: words against hidden states.

    python -m pip download --no-deps lm_eval && unzip lm_eval-*.whl
    python -m benchmarks.domains --mmlu=lm_eval/tasks/mmlu/flan_cot_fewshot --encoder=runs/smollm2

The questions are the examples of MMLU's 57 subjects that lm-evaluation-harness (EleutherAI, MIT) ships for its prompts,
without their choices. runs/smollm2 is made as benchmarks/gsm8k_curation.py says. Writes
benchmarks/results/domains.json.
"""

from __future__ import annotations

import argparse
import collections
import math
import pathlib
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

import s1jax
from benchmarks import record
from s1jax.curation import clusters, word_vectors
from s1jax.data import identity
from s1jax.engine import embed

SEEDS = range(5)
CLUSTERS = (20, 57)


def questions(folder: pathlib.Path) -> dict[str, str]:
    """Question -> subject."""
    found = {}
    for file in sorted(folder.glob("mmlu_*.yaml")):
        content = yaml.safe_load(re.sub(r"!function \S+", "null", file.read_text()))
        for example in content["fewshot_config"]["samples"]:
            found[re.split(r"\n*\(A\)", example["question"])[0].strip()] = content["dataset_name"]
    return found


def agreement(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Normalised mutual information of two divisions of the same rows, 0 to 1, by the mean of their entropies."""
    n = len(one)
    both, first, second = (collections.Counter(found) for found in (zip(one, other, strict=True), one, other))
    shared = sum(c / n * math.log(c * n / (first[a] * second[b])) for (a, b), c in both.items())
    entropies = [-sum(c / n * math.log(c / n) for c in found.values()) for found in (first, second)]
    return shared / max(sum(entropies) / 2, 1e-12)


def nearest(vectors: np.ndarray, subjects: Sequence[str]) -> float:
    """Share of the rows whose nearest other row, by the cosine, has the same subject."""
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    return statistics.fmean(subjects[i] == subjects[j] for i, j in enumerate(products.argmax(1)))


def measure(vectors: np.ndarray, texts: Sequence[str], subjects: Sequence[str]) -> dict[str, Any]:
    """The share of right neighbours, and the agreement of clusters with subjects over seeds: mean, standard error."""
    ids = [identity.question_id(text) for text in texts]
    found: dict[str, Any] = {"nearest": round(100 * nearest(vectors, subjects), 1)}
    for count in CLUSTERS:
        own = (clusters.assign(ids, vectors, count, seed) for seed in SEEDS)
        found[f"clusters_{count}"] = _spread([agreement([one[i] for i in ids], subjects) for one in own])
    return found


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return {"agreement": round(statistics.fmean(values), 3), "error": round(error, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmlu", type=pathlib.Path, required=True)
    parser.add_argument("--encoder", required=True)
    args = parser.parse_args()
    found = questions(args.mmlu)
    texts, subjects = list(found), list(found.values())
    model = s1jax.load_model(args.encoder, dtype="float32")
    hidden = embed.embed(
        model.params, model.config, [model.tokenizer.encode_text(text) for text in texts], batch_size=32
    )
    sets = {
        "words": word_vectors.embed(texts),
        "hidden_states": hidden,
        "standardised": embed.standardised(hidden),
    }
    chance: dict[str, Any] = {}
    for count in CLUSTERS:
        drawn = [random.Random(f"{seed}").choices(range(count), k=len(texts)) for seed in SEEDS]
        chance[f"clusters_{count}"] = _spread([agreement(one, subjects) for one in drawn])
    record.write(
        "domains",
        {
            "questions": len(texts),
            "subjects": len(set(subjects)),
            "encoder": "SmolLM2-135M-Instruct",
            **{name: measure(vectors, texts, subjects) for name, vectors in sets.items()},
            "chance": chance,
        },
    )


if __name__ == "__main__":
    main()
