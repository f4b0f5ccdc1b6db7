"""Greedy decoding of s1jax against transformers: same shapes, same run, alternating.

    python -m benchmarks.decode [--rounds 5] [--cases 1x128x256,16x128x128]

A case is BATCH x PROMPT x NEW ids; times include the prefill, on both sides. The s1jax side is the sampler as the
launchers use it, budget forcing included, with budgets that never force. fp32 on a CPU. Needs torch and transformers.
The last figure is the bandwidth of a large read in the same run: at batch 1, tokens/s can't exceed it over the bytes of
the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import models, record
from s1jax.config import Controls, Delimiters
from s1jax.sample.engine import Engine
from s1jax.sample.generate import Request

# A row answers at once, after one forced id, and nothing but max_answer_tokens ends the answer.
DELIMITERS = Delimiters((), (0,), (), (), (), (), (), (), num_ids=models.CONFIG.vocab_size)


def ours(prompts: np.ndarray, new: int) -> Callable[[], Any]:
    """A function that samples `new` ids after every prompt [B, T] with s1jax."""
    params = jax.tree.map(jnp.asarray, models.random_params())
    engine = Engine(params, config=models.CONFIG, slots=len(prompts))
    controls = Controls(max_thinking_tokens=0, max_answer_tokens=new - 1)
    requests = [Request(tuple(prompt), controls) for prompt in prompts.tolist()]

    def run() -> None:
        samples = engine.sample(requests, DELIMITERS)
        assert all(len(sample.ids) == new for _, sample in samples)

    return run


def theirs(prompts: np.ndarray, new: int) -> Callable[[], Any]:
    """The same with transformers' generate and its default cache."""
    import torch

    model = models.transformers_model().eval()
    model.generation_config.eos_token_id = None
    inputs = torch.from_numpy(prompts).long()

    def run() -> None:
        with torch.inference_mode():
            ids = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        assert ids.shape[1] == prompts.shape[1] + new

    return run


def read_bandwidth() -> float:
    """GB/s of summing 320 MB, the best of five."""
    array = jnp.ones(80_000_000, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        total(array).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return array.nbytes / min(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="1x128x256,16x128x128")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = {}
    for case in args.cases.split(","):
        batch, length, new = map(int, case.split("x"))
        prompts = rng.integers(0, models.CONFIG.vocab_size, (batch, length))
        seconds = record.alternate({"s1jax": ours(prompts, new), "transformers": theirs(prompts, new)}, args.rounds)
        cases[case] = {
            "tokens_per_second": {name: batch * new / statistics.median(times) for name, times in seconds.items()},
            "times_faster_than_transformers": record.ratios(seconds, "s1jax", "transformers"),
            "seconds": seconds,
        }
    record.write(
        "decode",
        {"dtype": "float32", "parameters": models.CONFIG.num_params, "read_gb_per_s": read_bandwidth(), **cases},
    )


if __name__ == "__main__":
    main()
