"""Greedy decoding of s1jax against transformers and tunix's sampler: same shapes, same run, alternating.

    python -m benchmarks.decode [--rounds 5] [--cases 1x128x256,16x128x128] [--peers transformers,tunix]

A case is BATCH x PROMPT x NEW ids; times include the prefill, on all sides. The s1jax side is the sampler as the
launchers use it, budget forcing included, with budgets that never force. fp32 on a CPU. Each runs three times in a
row, and the median counts, as in benchmarks/train_step.py. Needs torch and transformers, and google-tunix where it is
asked for. The last figure is the bandwidth of a large read in the same run: at batch 1, tokens/s can't exceed it over
the bytes of the weights.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import models, record
from s1jax.config.sampling import SamplingParams
from s1jax.engine.engine import Engine
from s1jax.engine.sequence import EncodedRequest
from s1jax.text.delimiters import Delimiters

# A row answers at once, after one forced id, and nothing but max_answer_tokens ends the answer.
DELIMITERS = Delimiters((), (0,), (), (), (), (), (), num_ids=models.CONFIG.vocab_size)


def requests(prompts: list[list[int]], new: list[int], temperature: float = 0.0) -> list[EncodedRequest]:
    """Rows that answer at once, after one forced id, with new - 1 ids."""
    controls = [SamplingParams(max_thinking_tokens=0, max_answer_tokens=n - 1, temperature=temperature) for n in new]
    return [EncodedRequest(tuple(p), c) for p, c in zip(prompts, controls, strict=True)]


def generator() -> Callable[..., None]:
    """A function (prompts, new ids, sampled=False) that runs one static batch with transformers' generate.

    Prompts are padded on the left; it is greedy, or samples at temperature 1 without filters.
    """
    import torch

    model = models.transformers_model().eval()
    model.generation_config.eos_token_id = None

    def run(prompts: list[list[int]], new: int, sampled: bool = False) -> None:
        longest = max(map(len, prompts))
        inputs = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            ids = model.generate(
                inputs, attention_mask=mask, max_new_tokens=new, do_sample=sampled, top_k=0 if sampled else None,
                pad_token_id=0,
            )  # fmt: skip
        assert ids.shape[1] == longest + new

    return run


def tunix(prompts: list[list[int]], new: int) -> Callable[[], None]:
    """The same with tunix's sampler, its cache as long as it has to be."""
    from tunix.generate import sampler

    shape = models.CONFIG
    cache = sampler.CacheConfig(len(prompts[0]) + new, shape.num_layers, shape.num_kv_heads, shape.head_dim)
    engine = sampler.Sampler(models.tunix_model(), _Ids(), cache)
    texts = [" ".join(map(str, prompt)) for prompt in prompts]

    def run() -> None:
        out = engine(texts, max_generation_steps=new, max_prompt_length=len(prompts[0]), eos_tokens=[shape.vocab_size])
        assert all(len(ids) == new for ids in out.tokens)

    return run


class _Ids:
    """What tunix takes for a tokenizer: texts are ids, none of which is special."""

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in text.split()]

    def decode(self, ids: list[int]) -> str:
        return ""

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return models.CONFIG.vocab_size

    def pad_id(self) -> int:
        return models.CONFIG.vocab_size + 1


PEERS: dict[str, Callable[[list[list[int]], int], Callable[[], None]]] = {
    "transformers": lambda prompts, new: functools.partial(generator(), prompts, new),
    "tunix": tunix,
}


def ours(prompts: list[list[int]], new: int) -> Callable[[], None]:
    """A function that samples `new` ids after every prompt with s1jax."""
    params = jax.tree.map(jnp.asarray, models.random_params())
    engine = Engine(params, config=models.CONFIG, slots=len(prompts))

    def run() -> None:
        samples = engine.sample(requests(prompts, [new] * len(prompts)), DELIMITERS)
        assert all(len(sample.ids) == new for _, sample in samples)

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
    record.add_peers(parser, PEERS)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = {}
    for case in args.cases.split(","):
        batch, length, new = map(int, case.split("x"))
        prompts = rng.integers(0, models.CONFIG.vocab_size, (batch, length)).tolist()
        peers = {name: PEERS[name](prompts, new) for name in args.peers}
        seconds = record.alternate({"s1jax": ours(prompts, new), **peers}, args.rounds, in_a_row=3)
        cases[case] = {
            "tokens_per_second": {name: batch * new / statistics.median(times) for name, times in seconds.items()},
            **record.comparisons(seconds),
        }
    record.write(
        "decode",
        {"dtype": "float32", "parameters": models.CONFIG.num_params, "read_gb_per_s": read_bandwidth(), **cases},
        speed=True,
    )


if __name__ == "__main__":
    main()
