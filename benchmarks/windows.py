"""Seconds of attention with and without a window on a CPU: a training layer, and a decode step over the KV cache.

    python -m benchmarks.windows [--length=8192] [--window=512] [--rounds=5]

Heads are those of Gemma 3 270M (4 query heads and 1 key head of 256). Prints the medians; records nothing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import record
from s1jax.config import presets
from s1jax.model import cache as cache_lib
from s1jax.model.attention import cached, dispatch
from s1jax.model.attention.rule import AttentionRule

_ROWS = 4  # sequences that decode at one time


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192, help="Tokens of a row.")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rules = {name: AttentionRule(1 / 16, window=window) for name, window in (("full", 0), ("window", args.window))}
    for what, make in (("training", _training), ("decoding", _decoding)):
        seconds = record.alternate({name: make(rule, args.length) for name, rule in rules.items()}, args.rounds)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        print(f"{what}: " + ", ".join(f"{name} {value:.4g} s" for name, value in medians.items()))


def _training(rule: AttentionRule, length: int) -> Callable[[], object]:
    """Gradients of the attention of one row."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, length, heads, 256)) for i, heads in enumerate((4, 1, 1)))
    ids = jnp.ones((1, length), jnp.int32)
    attend = functools.partial(dispatch.attend, implementation="chunked", rule=rule)
    gradients = jax.jit(jax.grad(lambda q, k, v: attend(q, k, v, ids).sum(), argnums=(0, 1, 2)))
    jax.block_until_ready(gradients(q, k, v))
    return lambda: jax.block_until_ready(gradients(q, k, v))


def _decoding(rule: AttentionRule, length: int) -> Callable[[], object]:
    """One token of each sequence at the end of a full cache of one layer."""
    config = presets.PRESETS["gemma3_270m"]
    cache = cache_lib.init_cache(config, _ROWS, length)
    pages = jax.tree.map(lambda x: x[0], cache.pages)
    q, k, v = (jax.random.normal(jax.random.key(i), (_ROWS, 1, heads, 256)) for i, heads in enumerate((4, 1, 1)))
    new = cache_lib.NewTokens(cache.table, jnp.full(_ROWS, length - 1), jnp.ones(_ROWS, jnp.int32))
    step = jax.jit(lambda q, k, v, pages: cached.attend_cached(q, k, v, pages, None, new, rule=rule)[0])
    jax.block_until_ready(step(q, k, v, pages))
    return lambda: jax.block_until_ready(step(q, k, v, pages))


if __name__ == "__main__":
    main()
