"""Train steps on packed rows against padded ones: the same 16 examples in each step of both, alternating.

    python -m benchmarks.packing [--rounds 5]

The paper's recipe and s1K's lengths, scaled down by 32: s1K has 1,000 rows of 4.7 M ids in all and 9,109 in the
longest, and the recipe's block is 32,768. Between these figures the lengths are made: the i-th of n is
longest * (i / n) ** p, with p such that the mean is s1K's. Both are measured with the paper's block, and with one of
10,240 as well, which is all that the longest row needs and what a careful user would pad to.

fp32 on a CPU, a decoder of 4.2 M parameters, no rematerialisation, the first tenth of each example without loss.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import models, record
from s1jax.config.experiment import MeshConfig, TrainConfig
from s1jax.config.model import ModelConfig
from s1jax.data import layout
from s1jax.data.batches import Batches
from s1jax.data.packing import Example
from s1jax.model import decoder
from s1jax.parallel import mesh as mesh_lib
from s1jax.parallel import sharding

SCALE = 32
ROWS, IDS, LONGEST = layout.KNOWN["s1k"]
BLOCKS = {"paper's block": 32768, "shortest block": 10240}
MODEL = ModelConfig.dense(
    vocab_size=4096,
    d_model=256,
    mlp_dim=768,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    qkv_bias=True,
    tied_embeddings=True,
)
TRAIN = TrainConfig(compute_dtype="float32", remat="none")


def examples() -> list[Example]:
    """Random ids of s1K's scaled lengths."""
    rng = np.random.default_rng(0)
    return [
        Example(
            rng.integers(MODEL.vocab_size, size=length + 1).astype(np.int32),
            np.arange(length + 1) >= max(1, length // 10),
            f"example {i}",
        )
        for i, length in enumerate(layout.lengths(ROWS, IDS / SCALE, LONGEST / SCALE))
    ]


def contender(batches: Batches, losses: list[float]) -> Callable[[], None]:
    """A function that takes the next step of a run on `batches` and appends its loss."""
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    step = models.stepper(MODEL, TRAIN, decoder.init_params(MODEL, jax.random.key(0)), batches.num_steps, mesh)
    return lambda: losses.append(step(sharding.put_batch(batches.batch(len(losses)), mesh)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    made = examples()
    sources = {
        f"{batching}, {name}": Batches(
            made, batch_size=TRAIN.batch_size, block_size=block // SCALE, batching=batching, epochs=TRAIN.epochs
        )
        for name, block in BLOCKS.items()
        for batching in ("padded", "packed")
    }
    losses: dict[str, list[float]] = {name: [] for name in sources}
    seconds = record.alternate({name: contender(sources[name], losses[name]) for name in sources}, rounds)
    # The first step of each, step 0, is the warm-up.
    supervised = [
        int(np.count_nonzero(sources["packed, paper's block"].batch(s + 1)["weights"])) for s in range(rounds)
    ]
    speed = {
        name: statistics.median(n / t for n, t in zip(supervised, times, strict=True))
        for name, times in seconds.items()
    }
    all_losses = np.array(list(losses.values()))
    record.write(
        "packing",
        {
            "lengths": {
                "scale": SCALE,
                "rows": len(made),
                "mean": sum(row.length for row in made) / len(made),
                "longest": max(row.length for row in made),
            },
            "parameters": MODEL.num_params,
            "batches": {
                name: {
                    "rows": source.num_rows,
                    "block_size": source.block_size,
                    "padding": float(
                        np.mean([np.mean(source.batch(s + 1)["segment_ids"] == 0) for s in range(rounds)])
                    ),
                }
                for name, source in sources.items()
            },
            "supervised_tokens_per_second": speed,
            "times_faster_than_padded": {
                name: record.ratios(seconds, f"packed, {name}", f"padded, {name}") for name in BLOCKS
            }
            | {
                "paper's block packed, shortest block padded": record.ratios(
                    seconds, "packed, paper's block", "padded, shortest block"
                )
            },
            "largest_relative_difference_of_losses": float(np.max(np.ptp(all_losses, axis=0) / all_losses[0])),
            "losses": losses,
            "seconds": seconds,
        },
        speed=True,
    )


if __name__ == "__main__":
    main()
